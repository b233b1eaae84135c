"""How a steady state is found: one file per method, all on the same flat :class:`Problem`."""

from .algorithm1 import solve_algorithm1
from .auto import solve_auto
from .from_torchdeq import TORCHDEQ_SOLVERS, solve_torchdeq
from .problem import Problem
from .status import Solution, Status

__all__ = ["DEFAULT_MAX_ITER", "SOLVERS", "Problem", "Solution", "Status", "solve"]

SOLVERS = ("auto", "algorithm1", *TORCHDEQ_SOLVERS)
DEFAULT_MAX_ITER = {"auto": 60, "algorithm1": 50, **dict.fromkeys(TORCHDEQ_SOLVERS, 200)}


def solve(
    problem: Problem, solver: str, tol: float, max_iter: int, check_stability: bool = True
) -> Solution:
    """Run the solver of that name on every circuit; only ``auto`` can check stability."""
    if solver == "auto":
        return solve_auto(problem, tol, max_iter, check_stability)
    if solver == "algorithm1":
        return solve_algorithm1(problem, tol, max_iter)
    return solve_torchdeq(problem, solver, tol, max_iter)
