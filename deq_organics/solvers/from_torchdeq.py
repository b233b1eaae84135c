"""torchdeq's solvers by their names, on the circuit's own map."""

from typing import Any

import torch
from torch import Tensor
from torchdeq.solver import get_solver

from .. import equations
from .problem import Problem
from .status import Solution, Status

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
    """Run torchdeq's solver from rest; convergence is judged here, by ``tol``, per sample."""
    rest = equations.identity_steady_state(
        problem.input_drive,
        problem.semisaturation,
        problem.normalization_weight,
        problem.exponent,
        problem.rectified,
    )
    start = torch.cat([part.expand_as(problem.input_drive) for part in rest], -1)
    options: dict[str, Any] = {"max_iter": max_iter, "tol": tol, "stop_mode": "rel"}
    if name == "anderson":
        options["lam"] = 1e-12
    with torch.no_grad():
        final, _, info = get_solver(name)(lambda x: circuit_map(problem, x), start, **options)
    y, a = final.chunk(2, -1)
    finite = torch.isfinite(final).all(-1, keepdim=True)
    y, a = torch.where(finite, y, start.chunk(2, -1)[0]), torch.where(finite, a, 1.0)
    error = problem.relative_residual(y, a)
    status = torch.where(error <= tol, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    steps = info["nstep"].to(torch.int64).expand(error.shape).contiguous()
    return Solution(y, a, error, steps, status)
