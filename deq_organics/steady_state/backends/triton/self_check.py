"""The self-checks of the steady state's kernels: a small batch against torch in float64."""

import torch
from torch import Tensor

from ....problem import Problem
from ....self_check import failure, generator
from ..trial import MAX_ITER, TOLERANCE, check_adjoint, check_state, draw, exact_state
from .launch import prepare, solve, solve_adjoint

__all__ = ["steady_state_failure"]

_CIRCUITS = 3


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
    problem = draw(_CIRCUITS, n, rectified)
    there = _moved(problem, device)
    found, settled = solve(there, prepare(there), TOLERANCE, TOLERANCE, MAX_ITER, False)
    check_state(found, settled, *exact_state(problem))


def _check_adjoint(n: int, rectified: bool, device: torch.device) -> None:
    """Raise where the kernels' adjoint is not that of dense linear systems in float64."""
    problem = draw(_CIRCUITS, n, rectified)
    y, a = exact_state(problem)
    g_y, g_a = torch.randn(2, _CIRCUITS, n, generator=generator(), dtype=torch.float64)
    there = _moved(problem, device)
    status = torch.zeros(_CIRCUITS, dtype=torch.int64, device=device)
    y32, a32, v, u = (part.to(device, torch.float32) for part in (y, a, g_y, g_a))
    found = solve_adjoint(there, prepare(there), y32, a32, status, v, u, 4.0 * TOLERANCE)
    check_adjoint(found, problem, y, a, g_y, g_a)


def _moved(problem: Problem, device: torch.device) -> Problem:
    moved = [part.to(device) if isinstance(part, Tensor) else part for part in problem]
    return Problem._make(moved)
