"""Newton's method on both equations, each sample by itself, for circuits that are hard to reach."""

import torch
from torch import Tensor

from .problem import Problem
from .status import Solution, Status

__all__ = ["solve_newton"]


def solve_newton(problem: Problem, y: Tensor, a: Tensor, tol: float, max_iter: int) -> Solution:
    """Newton steps from ``(y, a)``, shortened where a step would make an ``a`` nonpositive.

    The linear systems are those of ``y`` by its size and of each ``a`` by itself, so that they are
    of the order of 1 in whatever units.
    """
    n = y.shape[-1]
    error = problem.relative_residual(y, a)
    steps = torch.zeros_like(error, dtype=torch.int64)
    for _ in range(max_iter):
        going = (error > tol) & torch.isfinite(error)
        if not going.any():
            break
        residual_y, residual_a, size = problem.scaled_residual(y, a)
        residual = torch.cat([residual_y, residual_a], -1)
        unit = torch.cat([size.expand_as(y), a], -1)
        jacobian = problem.jacobian(y, a, unit_tau=True)
        scaled = jacobian * (unit.unsqueeze(-2) / unit.unsqueeze(-1))
        step, info = torch.linalg.solve_ex(scaled, -residual)
        shrink = torch.where(step[:, n:] < 0, -0.9 / step[:, n:], torch.inf).amin(-1)
        step = unit * step * torch.where(shrink < 1, shrink, 1.0).unsqueeze(-1)
        usable = (going & (info == 0) & torch.isfinite(step).all(-1)).unsqueeze(-1)
        y = torch.where(usable, y + step[:, :n], y)
        a = torch.where(usable, a + step[:, n:], a)
        error = torch.where(usable.squeeze(-1), problem.relative_residual(y, a), error)
        steps = steps + going
        if not usable.any():
            break
    status = torch.where(error <= tol, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    return Solution.unfollowed(y, a, error, steps, status)
