"""The time that no program can beat: work over the rates of the device that does it.

Two rates are measured: bytes per second of a large copy within the device's memory, read and
written, and operations per second of a large matrix product at each precision of float32 products
that torch knows. A floor is the larger of bytes over the one and operations over the other.

Products as accurate as float32 have two floors, of which the smaller counts: float32 arithmetic,
and three products in TF32 for each one.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from harness.output import table
from harness.timing import Clock, clock_for

__all__ = [
    "Rates",
    "Work",
    "floor_table",
    "matmul_precision",
    "measure_rates",
    "sequence_work",
    "static_work",
]

_FLOAT = 4
_REPEATS = 10
_KEPT_PER_NEURON = 5
_PRODUCTS_OF_A_STEP = 6
_PRODUCTS_OF_AN_ITERATION = 5


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Torch's precision of float32 matrix products: ``highest``, ``high`` or ``medium``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Rates:
    """What a device was measured to do in a second."""

    bytes: float
    operations: dict[str, float]
    """By precision of products: ``highest`` is float32, ``high`` TF32, ``medium`` bf16."""


@dataclass(frozen=True)
class Work:
    """What must be done at least."""

    operations: float
    """Of matrix products, a multiplication and an addition each counting one."""
    bytes: float
    """Read from and written to the device's memory."""

    def floors(self, rates: Rates) -> dict[str, float]:
        """Seconds at least, by precision of products."""
        arithmetic = {name: self.operations / rate for name, rate in rates.operations.items()}
        if "high" in arithmetic:
            arithmetic["highest"] = min(arithmetic["highest"], 3 * arithmetic["high"])
        memory = self.bytes / rates.bytes
        return {name: max(seconds, memory) for name, seconds in arithmetic.items()}

    def record(self, rates: Rates) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "floor_seconds": self.floors(rates)}


def sequence_work(n: int, batch: int, steps: int, inputs: int) -> Work:
    """A training step of :class:`recurrent.ORGaNICsRNN` with dynamic gains.

    Operations: a step multiplies six matrices ``(n, n)`` with a vector of each sequence (``Wr``,
    ``W``, ``Wby``, ``Wba``, ``Wb0y``, ``Wb0a``), the way back multiplies their transposes, and
    their gradients are as many products again: ``3 * 2 * 6 n^2 B T``.

    Bytes: the input, read on the way there and back, and five numbers per neuron and step, written
    once and read once: ``y`` (the output), ``a``, the drives of both gains, and ``Wr y``, without
    which the way back would need more products: ``4 (2 m + 2 * 5 n) B T``.
    """
    operations = 3 * 2 * _PRODUCTS_OF_A_STEP * n**2 * batch * steps
    return Work(operations, _FLOAT * 2 * (inputs + _KEPT_PER_NEURON * n) * batch * steps)


def static_work(n: int, batch: int, inputs: int, iterations: int) -> Work:
    """Forward and backward of :class:`deq_organics.ORGaNICsDEQ`, without its check of stability.

    Operations: an iteration multiplies five matrices ``(n, n)`` with a vector of each sample; the
    adjoint equation is taken to need as many iterations; then there are the gradients of ``Wr`` and
    ``W``, and the two weights ``(n, m)`` of the input with theirs:
    ``2 B (2 * 5 n^2 iterations + 2 n^2 + 3 * 2 n m)``.

    Bytes: the weights are read and their gradients written, the input is read and its gradient
    written, so are the rates (written) and theirs (read): ``4 * 2 (2 n^2 + 2 n m + (m + n) B)``.
    """
    products = 2 * _PRODUCTS_OF_AN_ITERATION * n**2 * iterations + 2 * n**2 + 6 * n * inputs
    moved = 2 * n**2 + 2 * n * inputs + (inputs + n) * batch
    return Work(2 * batch * products, _FLOAT * 2 * moved)


def measure_rates(device: str) -> Rates:
    """Measure both rates on random data; products below float32 only where there are units for it.

    Sizes are large enough that launching costs nothing and that no cache holds the copy.
    """
    on_gpu = device.startswith("cuda")
    clock = clock_for(device)
    bandwidth = _copy_rate(2**28 if on_gpu else 2**24, device, clock)
    size = 8192 if on_gpu else 1024
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    products = {}
    for precision in ("highest", "high") if on_gpu else ("highest",):
        with matmul_precision(precision):
            products[precision] = _product_rate(left, right, clock)
    if on_gpu:
        products["medium"] = _product_rate(left.bfloat16(), right.bfloat16(), clock)
    return Rates(bandwidth, products)


def floor_table(work: Work, rates: Rates, milliseconds: dict[str, float]) -> str:
    """Floors by precision, and how far above them measured times are."""
    rows = []
    for precision, floor in work.floors(rates).items():
        measured = milliseconds.get(precision)
        over = "-" if measured is None else f"{1e-3 * measured / floor:.1f}"
        rows.append([precision, f"{1e3 * floor:.3g}", over])
    heading = (
        f"floor: {work.operations / 1e9:.3g} GFLOP, {work.bytes / 1e6:.3g} MB at "
        f"{rates.bytes / 1e9:.0f} GB/s"
    )
    return f"{heading}\n{table(['products', 'floor, ms', 'time / floor'], rows)}"


def _copy_rate(numbers: int, device: str, clock: Clock) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _median(lambda: target.copy_(source), clock)


def _product_rate(left: Tensor, right: Tensor, clock: Clock) -> float:
    """Operations per second of a product of square matrices."""
    return 2 * left.shape[0] ** 3 / _median(lambda: left @ right, clock)


def _median(action: Callable[[], Any], clock: Clock) -> float:
    """Median seconds of an action, after some untimed ones."""
    for _ in range(3):
        action()
    marks = [clock.mark()]
    for _ in range(_REPEATS):
        action()
        marks.append(clock.mark())
    return statistics.median(clock.laps(marks))
