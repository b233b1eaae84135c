"""torchdeq's solvers by their names, on the circuit's own map."""

from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from ..status import Solution, Status

__all__ = ["TORCHDEQ_SOLVERS", "circuit_map", "solve_torchdeq"]

TORCHDEQ_SOLVERS = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")


def circuit_map(problem: Problem, state: Tensor) -> Tensor:
    """``state + (tau_y dy/dt, tau_a da/dt)`` for ``state = (y, a)`` of shape ``(B, 2n)``.

    Its fixed points are the circuit's; it is one Euler step of length tau.
    """
    y, a = state.chunk(2, -1)
    residual_y, residual_a = problem.residual(y, a)
    return torch.cat([y + residual_y, a + residual_a], -1)


def solve_torchdeq(problem: Problem, name: str, tol: float, max_iter: int) -> Solution:
    """Run torchdeq's solver from the ``Wr = I`` state; convergence is judged here, per sample.

    torchdeq stops a batch as a whole: a sample's iterations depend on its neighbours.
    """
    # Nothing else of the library needs the package: without it all but these solvers work.
    from torchdeq.solver import get_solver

    closed = problem.identity_steady_state()
    start = torch.cat([part.expand_as(problem.input_drive) for part in closed], -1)
    options: dict[str, Any] = {"max_iter": max_iter, "tol": tol, "stop_mode": "rel"}
    if name == "anderson":
        options["lam"] = 1e-12
    try:
        with torch.no_grad():
            # Some of torchdeq's solvers hand a damping factor on to the map.
            final, _, info = get_solver(name)(
                lambda x, **_: circuit_map(problem, x), start, **options
            )
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return _solve_in_halves(problem, name, tol, max_iter, start)
    y, a = final.chunk(2, -1)
    finite = torch.isfinite(final).all(-1, keepdim=True)
    y, a = torch.where(finite, y, start.chunk(2, -1)[0]), torch.where(finite, a, 1.0)
    error = problem.relative_residual(y, a)
    status = torch.where(error <= tol, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    steps = info["nstep"].to(torch.int64).expand(error.shape).contiguous()
    return Solution.unfollowed(y, a, error, steps, status)


def _solve_in_halves(
    problem: Problem, name: str, tol: float, max_iter: int, start: Tensor
) -> Solution:
    """After a singular system, which ends a whole batch: find the sample it belongs to."""
    size = problem.batch_size
    if size == 1:
        y, a = start.chunk(2, -1)
        steps = torch.zeros(1, dtype=torch.int64, device=start.device)
        failed = torch.full_like(steps, Status.MAX_ITERATIONS)
        return Solution.unfollowed(y, a, problem.relative_residual(y, a), steps, failed)
    halves = torch.arange(size, device=start.device).chunk(2)
    parts = [solve_torchdeq(problem.select(half), name, tol, max_iter) for half in halves]
    return Solution(*(torch.cat(column) for column in zip(*parts, strict=True)))
