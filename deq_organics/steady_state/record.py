"""The record of a steady-state solve, and what happens when one fails."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..caller_warnings import warn_caller
from ..checks import physical
from ..errors import SteadyStateError, SteadyStateWarning
from .status import Reached, Status

__all__ = ["SteadyState", "report_failures"]


@dataclass(frozen=True)
class SteadyState:
    """Steady states of a batch of circuits and how each was reached.

    Where ``converged`` is false the circuit has no steady state in reach; ``status`` says why.
    ``y``, ``a`` and ``rates`` are NaN there, or, with ``on_failure="ignore"``, the finite point
    where the search ended. Such circuits have no gradient.

    A stable fixed point is not always where the circuit itself settles: ``reached`` says what is
    known of that.
    """

    y: Tensor
    """Membrane potentials of the principal neurons, ``(..., n)``."""
    a: Tensor
    """Membrane potentials of the inhibitory neurons, ``(..., n)``, positive."""
    rates: Tensor
    """Firing rates of the principal neurons, ``y+ = relu(y)^m``, ``(..., n)``."""
    converged: Tensor
    """Boolean, ``(...)``: a (stable, for ``solver="auto"``) fixed point within ``tol``."""
    residual: Tensor
    """Relative residual of the equations, ``(...)``; see ``Problem.relative_residual``."""
    iterations: Tensor
    """Iterations spent on each circuit, ``(...)``; 0 for a closed form."""
    status: Tensor
    """Each circuit's :class:`Status` as an integer, ``(...)``."""
    reached: Tensor = None  # type: ignore[assignment]
    """:class:`Reached` as an integer, ``(...)``: whether the circuit's dynamics, from rest or from
    the ``start`` of the solve, end at this state. YES and NO only where they were followed: with
    ``start``, or, from rest, where all faster methods had failed."""
    period: Tensor = None  # type: ignore[assignment]
    """Period of the stable cycle on which these dynamics end, ``(...)``, in the unit of the time
    constants; NaN where they end on none, or were not followed."""
    time: Tensor = None  # type: ignore[assignment]
    """Time until which these dynamics were followed, ``(...)``, in the unit of the time constants:
    until they settled, were on a cycle, diverged or were given up. NaN if they were not."""

    def __post_init__(self) -> None:
        """A state of one's own making says nothing of the dynamics."""
        for name, like, value in (
            ("reached", self.status, int(Reached.NOT_EXAMINED)),
            ("period", self.residual, torch.nan),
            ("time", self.residual, torch.nan),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.full_like(like, value))

    def __str__(self) -> str:
        status, reached = physical(self.status), physical(self.reached)
        solved, total = int((status == Status.CONVERGED).sum()), status.numel()
        lines = [f"SteadyState of {total} circuits, n = {self.y.shape[-1]}: {solved} converged"]
        for answer, words in _REACHED.items():
            count = int(((status == Status.CONVERGED) & (reached == answer)).sum())
            if count:
                lines.append(f"  {count} of these: {words}")
        lines += _reasons(status, self.period, self.time)
        return "\n".join(lines)


_REACHED = {
    Reached.YES: "the dynamics that were followed end there",
    Reached.NO: "stable, but the dynamics from rest end elsewhere",
}


def report_failures(status: Tensor, on_failure: str, period: Tensor, time: Tensor) -> None:
    """Raise for the circuits that did not converge or, with ``"warn"``, warn about them."""
    status = physical(status)
    failed = int((status != Status.CONVERGED).sum())
    reasons = "; ".join(line.strip() for line in _reasons(status, period, time))
    message = f"no steady state for {failed} of {status.numel()} circuits ({reasons})"
    if on_failure == "error":
        raise SteadyStateError(message)
    warn_caller(f"{message}. Their states are NaN.", SteadyStateWarning)


def _reasons(status: Tensor, period: Tensor, time: Tensor) -> list[str]:
    """A line for every kind of failure: how many, what happened, and when."""
    lines = []
    for kind in Status:
        rows = status == kind
        count = int(rows.sum())
        if kind == Status.CONVERGED or count == 0:
            continue
        line = f"  {count}: {kind.message}"
        if kind == Status.CYCLE:
            line += f" (period {_span(period, rows)})"
        if kind in (Status.DIVERGED, Status.NOT_SETTLED):
            line += f" (t = {_span(time, rows)})"
        lines.append(line)
    return lines


def _span(values: Tensor, rows: Tensor) -> str:
    """The chosen values, or the first and the last of several."""
    chosen = physical(values)[rows]
    first, last = f"{float(chosen.min()):.4g}", f"{float(chosen.max()):.4g}"
    return first if first == last else f"{first} to {last}"
