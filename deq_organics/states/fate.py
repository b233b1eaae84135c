"""Where trajectories end: at a fixed point, on a cycle, nowhere; each of these was checked."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .. import equations
from ..checks import check_positive_int
from ..circuit import Circuit
from ..response.arguments import check_circuit
from ..response.trajectory import Trajectory
from ..steady_state.record import SteadyState
from ..steady_state.status import Status
from .cycle import measure_cycles

__all__ = ["Fate", "Settled", "settle"]


class Fate(IntEnum):
    """How a trajectory ends; ``message`` says it in words."""

    FIXED_POINT = 0
    CYCLE = 1
    DIVERGENCE = 2
    UNDECIDED = 3

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Fate.FIXED_POINT: "settle at a stable fixed point",
    Fate.CYCLE: "end on a stable cycle",
    Fate.DIVERGENCE: "diverge",
    Fate.UNDECIDED: "are undecided",
}
_FATES = {
    Status.CONVERGED: Fate.FIXED_POINT,
    Status.CYCLE: Fate.CYCLE,
    Status.DIVERGED: Fate.DIVERGENCE,
}


@dataclass(frozen=True)
class Settled:
    """Where trajectories of a batch of circuits end; ``print`` it for a summary. No gradients."""

    fate: Tensor
    """Each trajectory's :class:`Fate` as an integer, ``(...)``."""
    status: Tensor
    """:class:`Status` as an integer, ``(...)``: why a trajectory is undecided."""
    y: Tensor
    """``(..., n)``: the fixed point, a point of the cycle, the last point of moderate size before a
    divergence, or where an undecided trajectory was left."""
    a: Tensor
    """``(..., n)``, likewise."""
    residual: Tensor
    """Relative residual of the equations there, ``(...)``; small at fixed points alone."""
    time: Tensor
    """Until when the trajectory was followed, ``(...)``, in the unit of the time constants: until
    its fate was known, or it was given up."""
    period: Tensor
    """Of the cycle, ``(...)``, in the unit of the time constants; NaN without one."""
    lowest_y: Tensor
    """Smallest ``y`` of each neuron on the cycle, ``(..., n)``. NaN without a cycle, and where the
    periodic solution was not found again from where the trajectory ended; so are the others."""
    highest_y: Tensor
    """Largest ``y``, ``(..., n)``."""
    lowest_a: Tensor
    """Smallest ``a``, ``(..., n)``."""
    highest_a: Tensor
    """Largest ``a``, ``(..., n)``."""
    exponent: float | Tensor
    """The circuits' power-law exponent ``m``."""

    @property
    def amplitude(self) -> Tensor:
        """Largest minus smallest firing rate ``y+`` of each neuron on the cycle, ``(..., n)``."""
        highest = equations.firing_rate(self.highest_y, self.exponent)
        return highest - equations.firing_rate(self.lowest_y, self.exponent)

    @property
    def frequency(self) -> Tensor:
        """Of the cycle, ``(...)``, in 1/time; NaN without one."""
        return 1.0 / self.period

    def __str__(self) -> str:
        fate = self.fate.flatten()
        lines = [f"Settled: {fate.numel()} trajectories, n = {self.y.shape[-1]}"]
        for kind in Fate:
            rows = fate == kind
            if not rows.any():
                continue
            line = f"  {int(rows.sum())} {kind.message}"
            if kind == Fate.CYCLE:
                line += f", period {_span(self.period.flatten()[rows])}, largest amplitude of a "
                line += f"rate {_span(self.amplitude.reshape(len(fate), -1)[rows].amax(-1))}"
            if kind == Fate.DIVERGENCE:
                line += f", known at t = {_span(self.time.flatten()[rows])}"
            lines.append(line)
            if kind == Fate.UNDECIDED:
                for status in self.status.flatten()[rows].unique().tolist():
                    count = int((self.status.flatten()[rows] == status).sum())
                    lines.append(f"    {count}: {Status(status).message}")
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def settle(
    circuit: Circuit,
    start: str | tuple[Tensor, Tensor] | SteadyState | Trajectory = "rest",
    *,
    tol: float = 1e-6,
    max_steps: int = 4096,
) -> Settled:
    """Follow the circuits' dynamics and say where they end; each statement is checked.

    - A fixed point: Newton's method finds one right beside the trajectory, and it is proved stable.
    - A cycle: Newton's method finds a periodic solution beside the trajectory, which comes back
      after several periods; its monodromy matrix has no other multiplier above 0.98, and the
      trajectory approaches it. Up to 32 neurons of each type; larger circuits are undecided.
    - A divergence: the state has grown by twelve orders of magnitude beyond its natural size.

    All else is undecided: chaos, what is slower than the steps that are allowed, a trajectory that
    stays exactly on an unstable fixed point.

    Args:
        circuit: The circuits.
        start: ``"rest"`` (``y = 0, a = c``); ``(y, a)``, each ``(..., n)``, whose leading
            dimensions broadcast with the circuits'; a :class:`SteadyState`; or the last state of a
            :class:`Trajectory`.
        tol: Largest relative residual of a fixed point.
        max_steps: Steps of the integration, for each trajectory.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
    """
    check_circuit(circuit)
    steps = check_positive_int("max_steps", max_steps)
    found = circuit.steady_state(
        tol=tol, max_iter=steps, on_failure="ignore", start=_state_of(start)
    )
    fate = torch.full_like(found.status, int(Fate.UNDECIDED))
    for status, kind in _FATES.items():
        fate = torch.where(found.status == status, int(kind), fate)
    shape, n = fate.shape, circuit.n
    problem = circuit.parameters._replace(input_drive=circuit.input_drive.expand(*shape, n)).flat()
    rows = (fate.flatten() == Fate.CYCLE).nonzero().squeeze(-1)
    y, a = (part.reshape(-1, n).clone() for part in (found.y, found.a))
    period = found.period.flatten().double().clone()
    swings = y.new_full((2, len(y), 2 * n), torch.nan)
    if rows.numel():
        measured = measure_cycles(problem.select(rows), y[rows], a[rows], period[rows])
        y[rows], a[rows] = measured.y.to(y.dtype), measured.a.to(y.dtype)
        period[rows] = measured.period
        swings[0, rows], swings[1, rows] = (part.to(y.dtype) for part in measured[3:])
    (lowest_y, lowest_a), (highest_y, highest_a) = (
        part.reshape(*shape, 2, n).unbind(-2) for part in swings
    )
    return Settled(
        fate,
        found.status,
        y.reshape(*shape, n),
        a.reshape(*shape, n),
        problem.relative_residual(y, a).reshape(shape),
        found.time,
        period.reshape(shape).to(y.dtype),
        lowest_y,
        highest_y,
        lowest_a,
        highest_a,
        circuit.exponent,
    )


def _state_of(start: Any) -> Any:
    if isinstance(start, Trajectory):
        return start.y[-1], start.a[-1]
    if isinstance(start, SteadyState):
        return start.y, start.a
    return start


def _span(values: Tensor) -> str:
    values = values[~values.isnan()]
    if values.numel() == 0:
        return "unknown"
    first, last = f"{float(values.min()):.4g}", f"{float(values.max()):.4g}"
    return first if first == last else f"{first} to {last}"
