"""The circuit's own dynamics, followed from rest until they settle: the solver of last resort.

An adaptive Rosenbrock method (ROS2, L-stable, second order; Verwer et al., SIAM J. Sci. Comput.
20, 1999) follows each circuit's trajectory. Near a stable fixed point its steps grow without
bound and it turns into Newton's method; where there is no stable steady state it keeps cycling
or diverges, and says which.
"""

import torch
from torch import Tensor

from .problem import Problem
from .status import Solution, Status

__all__ = ["settle"]

_GAMMA = 1.0 - 0.5**0.5
_RTOL = 1e-3
_ATOL = 1e-6
_MAX_STEPS = 1000
_DIVERGED = 1e6


def settle(problem: Problem, tol: float) -> tuple[Solution, Tensor, Tensor]:
    """Integrate from rest, ``y = 0, a = c``. Also returns the mean state over the last half."""
    y = torch.zeros_like(problem.input_drive)
    a = problem.semisaturation.expand_as(y).clone()
    scale = a.norm(dim=-1) + problem.input_drive.norm(dim=-1)
    size = y.shape[0]
    error = problem.relative_residual(y, a)
    steps = torch.zeros(size, dtype=torch.int64, device=y.device)
    status = torch.full_like(steps, Status.NOT_SETTLED)
    h = 0.1 * torch.minimum(problem.tau_y.amin(-1), problem.tau_a.amin(-1)).expand(size).clone()
    mean_y, mean_a = torch.zeros_like(y), torch.zeros_like(a)
    elapsed = torch.zeros_like(h)
    for step in range(_MAX_STEPS):
        going = status == Status.NOT_SETTLED
        index = going.nonzero().squeeze(-1)
        if index.numel() == 0:
            break
        part = problem.select(index)
        y_new, a_new, h_new, accepted = _step(part, y[index], a[index], h[index])
        if step >= _MAX_STEPS // 2:
            weight = torch.where(accepted, h[index], 0.0).unsqueeze(-1)
            mean_y[index] += weight * y_new
            mean_a[index] += weight * a_new
            elapsed[index] += weight.squeeze(-1)
        y[index], a[index], h[index] = y_new, a_new, h_new
        error[index] = part.relative_residual(y_new, a_new)
        steps[index] += 1
        size_now = y_new.norm(dim=-1) + a_new.norm(dim=-1)
        status[index[error[index] <= tol]] = Status.CONVERGED
        status[index[~(size_now <= _DIVERGED * (1.0 + scale[index]))]] = Status.DIVERGED
    elapsed = elapsed.clamp_min(torch.finfo(h.dtype).tiny).unsqueeze(-1)
    seen = status == Status.NOT_SETTLED
    mean_y = torch.where(seen.unsqueeze(-1), mean_y / elapsed, y)
    mean_a = torch.where(seen.unsqueeze(-1), mean_a / elapsed, a)
    return Solution(y, a, error, steps, status), mean_y, mean_a


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
