"""The contenders of the sequence benchmark: ways to train one recurrent layer."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.floor import matmul_precision
from harness.graphs import capture
from harness.race import Contender, Step, gradient_step
from recurrent import ORGaNICsCell, ORGaNICsRNN, State
from recurrent.backends import SequenceWork, backend_names, choose

__all__ = [
    "AUTO",
    "LSTM",
    "MAX_STEPS",
    "PUBLISHED",
    "Entry",
    "PublishedLoop",
    "cuda_name",
    "entries",
]

AUTO, PUBLISHED, LSTM = "auto", "published", "nn.LSTM"
MAX_STEPS = {"y": 0.02, "a": 0.005, "b": 0.1}
"""Largest dt/tau of the authors' recipe for 784 steps."""
DEFAULT_PRECISION = "highest"
"""Torch's own default."""


def cuda_name(precision: str) -> str:
    """The name of the Triton kernels with products at a precision."""
    return f"cuda, {precision}"


class Entry(NamedTuple):
    """A contender; if it is this library's, the module whose accuracy is measured."""

    contender: Contender
    rnn: ORGaNICsRNN | None = None


class PublishedLoop(nn.Module):
    """The authors' cell in the loop of their training script."""

    start: Tensor

    def __init__(self, units: int, directory: Path, max_steps: dict[str, float]) -> None:
        super().__init__()
        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
        from models.dynamical.rnnCell import rnnCell  # type: ignore[import-not-found]

        steps = {f"dt_tau_max_{name}": value for name, value in max_steps.items()}
        self.cell = rnnCell(1, units, **steps)
        self.register_buffer("start", torch.rand(3, units))

    def forward(self, x: Tensor) -> Tensor:
        """The last ``y``, ``(B, n)``, for ``x (T, B, 1)``."""
        y, a, b = (part.repeat(x.shape[1], 1) for part in self.start)
        b0 = torch.ones_like(y)
        for row in x:
            y, a, b0, b = self.cell(row, y, a, b0, b)
        return y


def entries(units: int, weights: Tensor, published: Path | None, seed: int) -> list[Entry]:
    """Everything that can run on the device of ``weights``, ours first.

    Args:
        units: Hidden size ``n``.
        weights: Of the last outputs in the loss, ``(B, n)``.
        published: Checkout of the authors' repository.
        seed: Of the parameters, which all of ours have in common.
    """
    on_gpu = weights.device.type == "cuda"
    ours = partial(_ours, units, weights, seed)
    found = [ours(AUTO, "auto", DEFAULT_PRECISION)]
    if on_gpu and "cuda" in backend_names():
        found += [ours(cuda_name(name), "cuda", name) for name in ("highest", "high", "medium")]
    found += [ours(name, name, DEFAULT_PRECISION) for name in ("fused", "reference")]
    if on_gpu:
        rnn = _organics(units, "reference", seed).to(weights.device)
        name = "reference, CUDA graph"
        found.append(Entry(Contender(name, partial(_graphed_step, rnn, weights))))
    if published is not None:
        found.append(Entry(_published(units, weights, published, seed)))
    found.append(Entry(_lstm(LSTM, units, weights, seed, allow_tf32=True)))
    if on_gpu:
        found.append(Entry(_lstm(f"{LSTM}, no TF32", units, weights, seed, allow_tf32=False)))
    return found


def _organics(units: int, backend: str, seed: int) -> ORGaNICsRNN:
    torch.manual_seed(seed)
    return ORGaNICsRNN(1, units, backend=backend, recurrence="unconstrained")


def _ours(units: int, weights: Tensor, seed: int, name: str, backend: str, precision: str) -> Entry:
    rnn = _organics(units, backend, seed).to(weights.device)
    choice = rnn.backend_for(weights.new_zeros(1, 1, 1)) if backend == "auto" else None
    setting = "" if choice is None else f"backend {choice.backend.name} ({choice.reason})"

    def prepare(x: Tensor) -> Step:
        return gradient_step(lambda: rnn(x)[1].y[-1], weights, list(rnn.parameters()))

    contender = Contender(name, prepare, setting, partial(matmul_precision, precision))
    return Entry(contender, rnn)


def _graphed_step(rnn: ORGaNICsRNN, weights: Tensor, x: Tensor) -> Step:
    """The backend without the module's checks of its input, which wait for the device."""
    (cell,) = cast(Iterable[ORGaNICsCell], rnn.cells)
    first = State(*(part[0] for part in rnn.rest_state(x.shape[1])))

    def outputs() -> Tensor:
        sequence = SequenceWork(cell.model, cell.parameters_of_step(), x, first)
        return choose(rnn.backend, sequence).backend.run(sequence)[1].y

    return capture(gradient_step(outputs, weights, list(rnn.parameters())))


def _published(units: int, weights: Tensor, directory: Path, seed: int) -> Contender:
    def prepare(x: Tensor) -> Step:
        torch.manual_seed(seed)
        loop = PublishedLoop(units, directory, MAX_STEPS).to(x.device)
        learned = [part for part in loop.parameters() if part.requires_grad]
        return gradient_step(lambda: loop(x), weights, learned)

    setting = "eager, products at precision medium, as in the authors' training script"
    return Contender(PUBLISHED, prepare, setting, partial(matmul_precision, "medium"))


def _lstm(name: str, units: int, weights: Tensor, seed: int, *, allow_tf32: bool) -> Contender:
    def prepare(x: Tensor) -> Step:
        torch.manual_seed(seed)
        lstm = nn.LSTM(1, units).to(x.device)
        return gradient_step(lambda: lstm(x)[1][0][-1], weights, list(lstm.parameters()))

    return Contender(name, prepare, "", partial(_cudnn_tf32, allow_tf32))


@contextmanager
def _cudnn_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
