"""What trained circuits do along sequences: how large their states get, how stable their steps."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recurrent import ORGaNICsCell, State, TrajectoryReport, check_trajectory
from recurrent.dynamics import euler_step

LIMIT = 1e3
EXAMINED_SEQUENCES, EXAMINED_STEPS = 8, 14


@dataclass(frozen=True)
class Bounds:
    """How large the states of `N` sequences get.

    Attributes:
        largest: the largest magnitude of y, a, b and b0 over all steps of all sequences; infinite
            where a state is not finite.
        bounded: whether every state of a sequence stays below `LIMIT`, `(N,)`.
    """

    largest: State
    bounded: Tensor

    @property
    def fraction(self) -> float:
        """The fraction of the sequences whose states stay bounded."""
        return float(self.bounded.double().mean())


@dataclass(frozen=True)
class TrajectoryFindings:
    """What circuits do along the sequences of a test set.

    Attributes:
        bounds: how large the states get along all of them.
        report: the stability of some steps along some of them. Eigenvalues are of one step, that
            is of dt times the circuit's Jacobian, and have no unit.
    """

    bounds: Bounds
    report: TrajectoryReport

    def metrics(self) -> dict[str, Any]:
        """What metrics.json says; a number that is not finite is None there."""
        return {
            "max_real_eigenvalue": _largest(self.report.rightmost),
            "max_spectral_radius": _largest(self.report.spectral_radius),
            "stable_fraction": float(self.report.stable.double().mean()),
            "step_too_large_fraction": float(self.report.step_too_large.double().mean()),
            "examined_steps": self.report.stable.numel(),
            "bounded_fraction": self.bounds.fraction,
            "largest_states": {
                name: finite_or_none(float(value))
                for name, value in self.bounds.largest._asdict().items()
            },
        }

    def __str__(self) -> str:
        sequences, bounded = len(self.bounds.bounded), int(self.bounds.bounded.sum())
        largest = ", ".join(
            f"|{name}| {float(value):.3g}" for name, value in self.bounds.largest._asdict().items()
        )
        radius = _largest(self.report.spectral_radius)
        return (
            f"states bounded along {bounded:,} of {sequences:,} test images ({largest} at most)\n"
            f"examined steps: {int(self.report.stable.sum()):,} of {self.report.stable.numel():,} "
            f"stable, largest spectral radius {'unknown' if radius is None else f'{radius:.6f}'}"
        )


@torch.no_grad()
def find_bounds(cell: ORGaNICsCell, first: State, batches: Iterable[Tensor]) -> Bounds:
    """Steps a cell from a first state `(n,)` through batches of sequences `(T, N, input_size)`."""
    parameters = cell.parameters_of_step()
    magnitudes = []
    for x in batches:
        state = _repeat(first, x.shape[1])
        largest = _magnitudes(state)
        for row in x:
            state = euler_step(cell.model, parameters, row, state)
            largest = torch.maximum(largest, _magnitudes(state))
        magnitudes.append(largest.cpu())
    # The maximum keeps a NaN, which counts as infinite: a diverged state must not pass.
    over_all = torch.cat(magnitudes, -1).nan_to_num(nan=math.inf, posinf=math.inf)
    return Bounds(State(*over_all.amax(-1)), (over_all < LIMIT).all(0))


def follow(cell: ORGaNICsCell, first: State, batches: Sequence[Tensor]) -> TrajectoryFindings:
    """Finds the bounds along all sequences, and the stability of steps along the first few."""
    few = batches[0][:, :EXAMINED_SEQUENCES]
    report = check_trajectory(
        cell,
        few,
        _repeat(first, few.shape[1]),
        every=math.ceil(len(few) / EXAMINED_STEPS),
        limit=LIMIT,
    )
    return TrajectoryFindings(find_bounds(cell, first, batches), report)


def finite_or_none(value: float) -> float | None:
    """A number for JSON, which knows no infinity and no NaN."""
    return value if math.isfinite(value) else None


def _repeat(state: State, count: int) -> State:
    """The same state for each of some sequences."""
    return State(*(part.expand(count, -1) for part in state))


def _magnitudes(state: State) -> Tensor:
    """The largest magnitude of each part, `(4, N)`."""
    return torch.stack([part.abs().amax(-1) for part in state])


def _largest(values: Tensor) -> float | None:
    """The largest finite value, if there is one."""
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else None
