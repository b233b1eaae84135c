"""How a steady state is found: one file per method, all on the same flat :class:`Problem`."""

import torch

from .algorithm1 import solve_algorithm1
from .auto import solve_auto, solve_closed_form
from .from_torchdeq import TORCHDEQ_SOLVERS, solve_torchdeq
from .problem import Problem
from .status import Solution, Status

__all__ = ["DEFAULT_MAX_ITER", "SOLVERS", "Problem", "Solution", "Status", "attainable", "solve"]

SOLVERS = ("auto", "algorithm1", *TORCHDEQ_SOLVERS)
DEFAULT_MAX_ITER = {"auto": 60, "algorithm1": 50, **dict.fromkeys(TORCHDEQ_SOLVERS, 200)}


def attainable(tol: float, dtype: torch.dtype) -> float:
    """The residual that counts as solved: ``tol``, or 16 eps where rounding allows no less."""
    return max(tol, 16.0 * torch.finfo(dtype).eps)


def solve(
    problem: Problem, solver: str, tol: float, max_iter: int, check_stability: bool = True
) -> Solution:
    """Run the solver of that name on every circuit; only ``auto`` can check stability."""
    if problem.batch_size == 0:
        return solve_closed_form(problem)
    if solver == "auto":
        return solve_auto(problem, tol, max_iter, check_stability)
    if solver == "algorithm1":
        return solve_algorithm1(problem, tol, max_iter)
    return solve_torchdeq(problem, solver, tol, max_iter)
