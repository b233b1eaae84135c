"""The circuit's own dynamics, followed from rest until they settle: the solver of last resort.

An adaptive Rosenbrock method (ROS2, L-stable, second order; Verwer et al., SIAM J. Sci. Comput.
20, 1999) follows each circuit's trajectory. Near a stable fixed point its steps grow without
bound and it turns into Newton's method; where there is no stable steady state it keeps cycling
or diverges, and says which.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem
from .status import Solution, Status

__all__ = ["Trajectory", "settle"]

_GAMMA = 1.0 - 0.5**0.5
_RTOL = 1e-3
_ATOL = 1e-6
_MAX_STEPS = 1000
_STRETCH = 100
_DIVERGED = 1e6


class Trajectory(NamedTuple):
    """Where a trajectory ended, and points within it from which Newton's method may start."""

    end: Solution
    waypoints: list[tuple[Tensor, Tensor]]
    """``(y, a)``, means over successive stretches of the trajectory, the latest first: the middle
    of an oscillation is close to the fixed point that it circles."""


def settle(problem: Problem, tol: float) -> Trajectory:
    """Integrate from rest, ``y = 0, a = c``."""
    y = torch.zeros_like(problem.input_drive)
    a = problem.semisaturation.expand_as(y).clone()
    scale = a.norm(dim=-1) + problem.input_drive.norm(dim=-1)
    size = y.shape[0]
    error = problem.relative_residual(y, a)
    steps = torch.zeros(size, dtype=torch.int64, device=y.device)
    status = torch.full_like(steps, Status.NOT_SETTLED)
    h = 0.1 * torch.minimum(problem.tau_y.amin(-1), problem.tau_a.amin(-1)).expand(size).clone()
    waypoints: list[tuple[Tensor, Tensor]] = []
    for step in range(_MAX_STEPS):
        index = (status == Status.NOT_SETTLED).nonzero().squeeze(-1)
        if index.numel() == 0:
            break
        if step % _STRETCH == 0:
            sum_y, sum_a, elapsed = torch.zeros_like(y), torch.zeros_like(a), torch.zeros_like(h)
        part = problem.select(index)
        y_new, a_new, h_new, accepted = _step(part, y[index], a[index], h[index])
        weight = torch.where(accepted, h[index], 0.0)
        sum_y[index] += weight.unsqueeze(-1) * y_new
        sum_a[index] += weight.unsqueeze(-1) * a_new
        elapsed[index] += weight
        y[index], a[index], h[index] = y_new, a_new, h_new
        error[index] = part.relative_residual(y_new, a_new)
        steps[index] += 1
        size_now = y_new.norm(dim=-1) + a_new.norm(dim=-1)
        status[index[error[index] <= tol]] = Status.CONVERGED
        status[index[~(size_now <= _DIVERGED * (1.0 + scale[index]))]] = Status.DIVERGED
        if step % _STRETCH == _STRETCH - 1:
            moved = (elapsed > 0).unsqueeze(-1)
            time = torch.where(moved, elapsed.unsqueeze(-1), 1.0)
            waypoints.insert(
                0, (torch.where(moved, sum_y / time, y), torch.where(moved, sum_a / time, a))
            )
    return Trajectory(Solution(y, a, error, steps, status), waypoints)


def _step(
    problem: Problem, y: Tensor, a: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One trial step of length ``h``; a rejected one returns the old state and a smaller step."""
    n = y.shape[-1]
    state = torch.cat([y, a], -1)
    step = h.unsqueeze(-1)
    identity = torch.eye(2 * n, dtype=y.dtype, device=y.device)
    matrix = identity - (_GAMMA * h)[:, None, None] * problem.jacobian(y, a)
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(rhs: Tensor) -> Tensor:
        return torch.linalg.lu_solve(lu, pivots, rhs.unsqueeze(-1)).squeeze(-1)

    k1 = solve(_flow(problem, state))
    k2 = solve(_flow(problem, state + step * k1) - 2.0 * k1)
    new = state + step * (1.5 * k1 + 0.5 * k2)
    tolerance = _ATOL + _RTOL * torch.maximum(state.abs(), new.abs())
    error = (0.5 * step * (k1 + k2) / tolerance).square().mean(-1).sqrt()
    accepted = (error <= 1.0) & (new[:, n:] > 0).all(-1) & torch.isfinite(new).all(-1)
    factor = torch.where(torch.isfinite(error), 0.8 / error.clamp_min(1e-8).sqrt(), 0.2).clamp(
        0.2, 5.0
    )
    h = h * torch.where(accepted, factor, factor.clamp_max(0.5))
    new = torch.where(accepted.unsqueeze(-1), new, state)
    return new[:, :n], new[:, n:], h, accepted


def _flow(problem: Problem, state: Tensor) -> Tensor:
    y, a = state.chunk(2, -1)
    residual_y, residual_a = problem.residual(y, a)
    return torch.cat([residual_y / problem.tau_y, residual_a / problem.tau_a], -1)
