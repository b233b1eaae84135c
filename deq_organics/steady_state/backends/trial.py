"""Small random circuits with known steady states and adjoints, which self-checks try kernels on."""

import math

import torch
from torch import Tensor

from ... import equations
from ...problem import Problem
from ...self_check import Deviation, compare, generator
from ..adjoint import solve_adjoint_dense
from ..methods.newton import solve_newton
from ..status import Solution
from .base import Adjoint

__all__ = ["MAX_ITER", "TOLERANCE", "check_adjoint", "check_state", "draw", "exact_state"]

# Residuals that float32 reaches, and relative errors that they can make here, and some more.
TOLERANCE, MAX_ITER = 4e-6, 60
_STATE_BOUND, _GRADIENT_BOUND = 1e-4, 1e-3


def draw(circuits: int, n: int, rectified: bool) -> Problem:
    """Circuits far from the identity, and from where steady states get lost."""
    random = generator()
    numbers = torch.rand(2 * circuits + 2 * n, n, generator=random, dtype=torch.float32)
    drive, c, wr, w = numbers.split([circuits, circuits, n, n])
    drive = torch.nn.functional.normalize(drive - 0.3, dim=-1)
    # A random matrix with entries uniform in +-1 has a norm of about 2 sqrt(n / 3).
    wr = (2.0 * wr - 1.0) * (0.4 / (2.0 * math.sqrt(n / 3.0)))
    wr = wr + 0.2 * torch.eye(n, dtype=torch.float32)
    ones = torch.ones(1, n, dtype=torch.float32)
    return Problem(drive, 0.5 + 0.5 * c, wr, w, ones, ones, 2.0, rectified)


def exact_state(problem: Problem) -> tuple[Tensor, Tensor]:
    """``y`` and ``a`` by Newton's method in float64, from the state of ``Wr = I``."""
    problem = problem.to(torch.float64)
    start = problem.identity_steady_state()
    found = solve_newton(problem, *start, 1e-12, MAX_ITER)
    return found.y, found.a


def check_state(found: Solution, settled: Tensor, y: Tensor, a: Tensor) -> None:
    """Raise where a kernel's steady states are not those known in float64."""
    solved = _mostly(settled)
    compare("y", found.y.cpu()[solved], y[solved], _STATE_BOUND)
    compare("a", found.a.cpu()[solved], a[solved], _STATE_BOUND)


def check_adjoint(
    found: Adjoint, problem: Problem, y: Tensor, a: Tensor, g_y: Tensor, g_a: Tensor
) -> None:
    """Raise where a kernel's adjoint of ``(g_y, g_a)`` is not that of dense linear systems."""
    exact = solve_adjoint_dense(problem.to(torch.float64), y, a, torch.cat([g_y, g_a], -1))
    adjoint_y, adjoint_a = exact.chunk(2, -1)
    solved = _mostly(~found.failed)
    gained = (1.0 - equations.inhibitory_firing_rate(a, 2.0)) * adjoint_y
    pooled = equations.normalization_pool(y, a, 2.0, problem.rectified)
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
