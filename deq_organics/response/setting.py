"""What a simulation integrates, and how the parts of its input are put together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_finite, check_number, physical
from ..circuit import Circuit
from ..integration import Pieces, VectorField
from ..problem import Problem
from .arguments import like_circuit
from .drives import Drive

__all__ = [
    "Input",
    "Setting",
    "flat_problem",
    "flat_start",
    "joint_batch",
    "joint_pieces",
    "looks",
]

# At so many times a function of the time is looked at for its size.
_LOOKS = 64


class Input(NamedTuple):
    """What drives a simulation, as the user gave it."""

    input_drive: Any
    inhibitory_drive: Any
    gains: Any
    jumps: Any
    interpolation: str

    @property
    def is_steady(self) -> bool:
        return self.input_drive is None and self.inhibitory_drive is None and self.gains is None


class Setting(NamedTuple):
    """All that is integrated."""

    field: VectorField
    problem: Problem
    """The circuits as a flat batch, with their own drives."""
    start: Tensor
    """``(B, k)``: ``y``, ``a``, and the gains that move."""
    size: Tensor
    """Of what drives each component, ``(B, k)``."""
    pieces: Pieces
    batch: torch.Size
    moving: tuple[str, ...]
    """Names of the gains that move."""


def joint_batch(circuit: Circuit, leads: Mapping[str, Sequence[int]]) -> torch.Size:
    """The leading dimensions of the circuits and of all that drives them, by name."""
    own = circuit.batch_shape
    try:
        return torch.broadcast_shapes(own, *(tuple(lead) for lead in leads.values()))
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(lead)}" for name, lead in leads.items())
        raise ValueError(
            f"leading dimensions: got circuits {tuple(own)}, {found}, expected shapes that "
            "broadcast together"
        ) from None


def flat_problem(circuit: Circuit, batch: torch.Size) -> Problem:
    """The circuits as a flat batch, spread to its leading dimensions."""
    drive = circuit.input_drive.expand(*batch, circuit.n)
    return circuit.parameters._replace(input_drive=drive).flat()


def flat_start(circuit: Circuit, name: str, value: Any, batch: torch.Size) -> Tensor:
    """A start ``(B, n)``."""
    tensor = like_circuit(name, value, circuit)
    check_finite(name, tensor)
    shape = (*batch, circuit.n)
    try:
        return tensor.expand(shape).reshape(-1, circuit.n)
    except RuntimeError:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected to broadcast to {shape}"
        ) from None


def looks(t: Tensor, pieces: Pieces) -> Tensor:
    """Times at which to look at functions of the time for their size."""
    times = physical(t).double()
    chosen = torch.linspace(0, times.numel() - 1, min(_LOOKS, times.numel())).round().long()
    edges = physical(pieces.edges).flatten()
    edges = edges[(edges >= times[0]) & (edges < times[-1])].unique()[:_LOOKS]
    after = torch.cat([edges, times[-1:]])
    # Within the pieces, not at their ends.
    return torch.cat([times[chosen.to(t.device)], after[:-1] + 0.5 * after.diff()])


def joint_pieces(
    circuit: Circuit, t: Tensor, given: Input, batch: torch.Size, drives: Sequence[Drive]
) -> Pieces:
    """Between all times at which a drive may jump or bend."""
    breaks = [_jumps(given.jumps, circuit, batch), *(drive.breaks() for drive in drives)]
    breaks = [part for part in breaks if part.shape[-1]] or breaks[:1]
    rows = max(part.shape[0] for part in breaks)
    together = torch.cat([part.expand(rows, -1) for part in breaks], -1)
    return Pieces(together, t[0].double(), t[-1].double())


def _jumps(jumps: Any, circuit: Circuit, batch: torch.Size) -> Tensor:
    """Times ``(1, K)``, or ``(B, K)`` one list a circuit, float64."""
    device = circuit.input_drive.device
    if isinstance(jumps, Tensor):
        times = jumps
    elif isinstance(jumps, Sequence) and not isinstance(jumps, str):
        parts = [
            part
            if isinstance(part, Tensor) and part.ndim == 0
            else torch.tensor(check_number("jumps", part), dtype=torch.float64, device=device)
            for part in jumps
        ]
        times = torch.stack([part.double() for part in parts]) if parts else torch.empty(0)
    else:
        raise TypeError(f"jumps: got {type(jumps).__name__}, expected times")
    if times.ndim == 0 or not (times.is_floating_point() or times.numel() == 0):
        raise ValueError(
            f"jumps: got {times.dtype} of shape {tuple(times.shape)}, expected floating-point "
            "times (K,), or (..., K) for each circuit"
        )
    check_finite("jumps", times)
    times = times.to(device, torch.float64)
    if times.ndim == 1:
        return times.unsqueeze(0)
    try:
        return times.expand(*batch, times.shape[-1]).reshape(-1, times.shape[-1])
    except RuntimeError:
        raise ValueError(
            f"jumps: got shape {tuple(times.shape)}, expected times (K,), or (..., K) for circuits "
            f"of shape {tuple(batch)}"
        ) from None
