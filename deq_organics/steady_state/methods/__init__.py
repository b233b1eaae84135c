"""How a steady state is found: one file per method, all on the same flat :class:`Problem`."""

from collections.abc import Callable

from torch import Tensor

from ...problem import Problem
from ..status import Solution
from .acceptance import accept, attainable
from .algorithm1 import solve_algorithm1
from .auto import solve_auto, solve_closed_form, solve_from
from .preconditioner import Preconditioner
from .relaxation.dynamics import MAX_STEPS, rest
from .torchdeq import TORCHDEQ_SOLVERS, solve_torchdeq

__all__ = [
    "DEFAULT_MAX_ITER",
    "MAX_STEPS",
    "SOLVERS",
    "attainable",
    "rest",
    "solve",
]

SOLVERS = ("auto", "algorithm1", *TORCHDEQ_SOLVERS)
DEFAULT_MAX_ITER = {"auto": 60, "algorithm1": 50, **dict.fromkeys(TORCHDEQ_SOLVERS, 200)}


def solve(
    problem: Problem,
    solver: str,
    tol: float,
    max_iter: int,
    verify_stability: bool = True,
    start: tuple[Tensor, Tensor] | None = None,
    precondition: Callable[[Problem], Preconditioner] = Preconditioner,
) -> Solution:
    """Run the solver of that name on every circuit; only ``auto`` can check stability.

    From a ``start``, ``y`` and ``a`` of shape ``(B, n)`` each, ``auto`` follows the dynamics for at
    most ``max_iter`` steps. All states are finite, with the residual that they really have.
    """
    if problem.batch_size == 0:
        return solve_closed_form(problem)
    if start is not None:
        return solve_from(problem, start, tol, max_iter)
    if solver == "auto":
        return solve_auto(problem, tol, max_iter, verify_stability, precondition)
    if solver == "algorithm1":
        return accept(problem, solve_algorithm1(problem, tol, max_iter), tol)
    return accept(problem, solve_torchdeq(problem, solver, tol, max_iter), tol)
