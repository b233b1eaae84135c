"""The self-checks of the steady state's kernels: a small batch against torch in float64."""

import math

import torch
from torch import Tensor

from .... import equations
from ....problem import Problem
from ....self_check import Deviation, compare, failure, generator
from ...adjoint import solve_adjoint_dense
from ...methods.newton import solve_newton
from .launch import prepare, solve, solve_adjoint

__all__ = ["steady_state_failure"]

_CIRCUITS = 3
# Residuals that float32 reaches, and relative errors that they can make here, and some more.
_TOLERANCE, _MAX_ITER = 4e-6, 60
_STATE_BOUND, _GRADIENT_BOUND = 1e-4, 1e-3


def steady_state_failure(drive: Tensor, rectified: bool, differentiated: bool) -> str | None:
    """Why the kernels cannot be trusted with circuits of that size and model; None if they can.

    The adjoint's, compiled by itself, is asked where the steady state is ``differentiated``.
    """
    variant = (n, _) = (drive.shape[-1], rectified)
    found = failure(
        "steady-state kernels",
        drive.device,
        variant,
        lambda device: _check_solve(n, rectified, device),
    )
    if found is None and differentiated:
        found = failure(
            "adjoint kernels",
            drive.device,
            variant,
            lambda device: _check_adjoint(n, rectified, device),
        )
    return found


def _check_solve(n: int, rectified: bool, device: torch.device) -> None:
    """Raise where the kernels' steady states are not those of Newton's method in float64."""
    problem = _draw(n, rectified)
    y, a = _exact_state(problem)
    there = _moved(problem, device)
    found, settled = solve(there, prepare(there), _TOLERANCE, _TOLERANCE, _MAX_ITER, False)
    solved = _mostly(settled)
    compare("y", found.y.cpu()[solved], y[solved], _STATE_BOUND)
    compare("a", found.a.cpu()[solved], a[solved], _STATE_BOUND)


def _check_adjoint(n: int, rectified: bool, device: torch.device) -> None:
    """Raise where the kernels' adjoint is not that of dense linear systems in float64."""
    problem = _draw(n, rectified)
    y, a = _exact_state(problem)
    exact = problem.to(torch.float64)
    g_y, g_a = torch.randn(2, _CIRCUITS, n, generator=generator(), dtype=torch.float64)
    adjoint_y, adjoint_a = solve_adjoint_dense(exact, y, a, torch.cat([g_y, g_a], -1)).chunk(2, -1)
    there = _moved(problem, device)
    status = torch.zeros(_CIRCUITS, dtype=torch.int64, device=device)
    y32, a32, v, u = (part.to(device, torch.float32) for part in (y, a, g_y, g_a))
    found = solve_adjoint(there, prepare(there), y32, a32, status, v, u, 4.0 * _TOLERANCE)
    solved = _mostly(~found.failed)
    gained = (1.0 - equations.inhibitory_firing_rate(a, 2.0)) * adjoint_y
    pooled = equations.normalization_pool(y, a, 2.0, rectified)
    for name, part, known in (
        ("the adjoint of y", found.y, adjoint_y),
        ("the adjoint of a", found.a, adjoint_a),
        ("the gradient of Wr", found.gained, gained),
        ("the gradient of W", found.pooled, pooled),
    ):
        compare(name, part.cpu()[solved], known[solved], _GRADIENT_BOUND)


def _mostly(solved: Tensor) -> Tensor:
    """Which circuits were solved; torch may take the others, but not most of these easy ones."""
    solved = solved.cpu()
    if (count := int(solved.sum())) <= len(solved) // 2:
        raise Deviation(f"{count} of {len(solved)} circuits were solved, torch solves all")
    return solved


def _draw(n: int, rectified: bool) -> Problem:
    """Circuits far from the identity, and from where steady states get lost."""
    random = generator()
    draw = torch.rand(2 * _CIRCUITS + 2 * n, n, generator=random, dtype=torch.float32)
    drive, c, wr, w = draw.split([_CIRCUITS, _CIRCUITS, n, n])
    drive = torch.nn.functional.normalize(drive - 0.3, dim=-1)
    # A random matrix with entries uniform in +-1 has a norm of about 2 sqrt(n / 3).
    wr = (2.0 * wr - 1.0) * (0.4 / (2.0 * math.sqrt(n / 3.0)))
    wr = wr + 0.2 * torch.eye(n, dtype=torch.float32)
    ones = torch.ones(1, n, dtype=torch.float32)
    return Problem(drive, 0.5 + 0.5 * c, wr, w, ones, ones, 2.0, rectified)


def _exact_state(problem: Problem) -> tuple[Tensor, Tensor]:
    """``y`` and ``a`` by Newton's method in float64, from the state of ``Wr = I``."""
    problem = problem.to(torch.float64)
    start = problem.identity_steady_state()
    found = solve_newton(problem, *start, 1e-12, _MAX_ITER)
    return found.y, found.a


def _moved(problem: Problem, device: torch.device) -> Problem:
    moved = [part.to(device) if isinstance(part, Tensor) else part for part in problem]
    return Problem._make(moved)
