"""The record of a steady-state solve, and what happens when one fails."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._validation import check_choice, check_number, check_positive_int, physical
from ._warnings import warn_caller
from .errors import SteadyStateError, SteadyStateWarning
from .solvers import DEFAULT_MAX_ITER, SOLVERS, Status

__all__ = ["ON_FAILURE", "SteadyState", "check_solve_options", "report_failures"]

ON_FAILURE = ("error", "warn", "ignore")


@dataclass(frozen=True)
class SteadyState:
    """Steady states of a batch of circuits and how each was reached.

    Where ``converged`` is false the circuit has no steady state in reach; ``status`` says why.
    ``y``, ``a`` and ``rates`` are NaN there, or, with ``on_failure="ignore"``, the finite point
    where the search ended. Such circuits have no gradient.
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

    def __str__(self) -> str:
        counts = _failures(physical(self.status))
        total = physical(self.status).numel()
        solved = total - sum(counts.values())
        lines = [f"SteadyState of {total} circuits, n = {self.y.shape[-1]}: {solved} converged"]
        lines += [f"  {count}: {status.message}" for status, count in counts.items()]
        return "\n".join(lines)


def check_solve_options(
    solver: str, tol: float, max_iter: int | None, on_failure: str, dtype: torch.dtype | None = None
) -> tuple[float, int]:
    """Validate the options of a solve; returns ``tol`` and the solver's ``max_iter``."""
    check_choice("solver", solver, SOLVERS)
    check_choice("on_failure", on_failure, ON_FAILURE)
    tol = check_number("tol", tol, low=0.0, high=1.0, open_low=True)
    if dtype is not None and tol < (smallest := 4.0 * torch.finfo(dtype).eps):
        raise ValueError(
            f"tol: got {tol:g}, expected at least {smallest:.2g}, the smallest residual that "
            f"{dtype} can reach; use float64 for a smaller one"
        )
    if max_iter is None:
        return tol, DEFAULT_MAX_ITER[solver]
    return tol, check_positive_int("max_iter", max_iter)


def report_failures(status: Tensor, on_failure: str) -> None:
    """Raise for the circuits that did not converge or, with ``"warn"``, warn about them."""
    status = physical(status)
    counts = _failures(status)
    reasons = "; ".join(f"{count}: {kind.message}" for kind, count in counts.items())
    message = f"no steady state for {sum(counts.values())} of {status.numel()} circuits ({reasons})"
    if on_failure == "error":
        raise SteadyStateError(message)
    warn_caller(f"{message}. Their states are NaN.", SteadyStateWarning)


def _failures(status: Tensor) -> dict[Status, int]:
    values, counts = status.unique(return_counts=True)
    found = zip(values.tolist(), counts.tolist(), strict=True)
    return {Status(value): count for value, count in found if value != Status.CONVERGED}
