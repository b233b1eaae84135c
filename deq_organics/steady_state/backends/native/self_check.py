"""The self-check of the C kernels of steady states: a small batch against torch in float64."""

from typing import NamedTuple

import torch

from ....native import library
from ....problem import Problem
from ....self_check import failure, generator
from ...methods.auto import has_identity_recurrence
from ..trial import MAX_ITER, TOLERANCE, check_adjoint, check_state, draw, exact_state
from .calls import TILE, prepare, solve, solve_adjoint

__all__ = ["steady_state_failure"]

# More than a panel of any instruction set and than a tile of samples, the last ones incomplete.
_NEURONS, _CIRCUITS = 37, TILE + 7


class _Variant(NamedTuple):
    """What the kernels have code of its own for."""

    instructions: str
    rectified: bool
    identity: bool


def steady_state_failure(problem: Problem) -> str | None:
    """Why the kernels cannot be trusted with such circuits; None if they can."""
    variant = _Variant(library().instructions, problem.rectified, has_identity_recurrence(problem))
    return failure(
        "steady-state kernels",
        problem.input_drive.device,
        variant,
        lambda device: _check(variant, device),
    )


def _check(variant: _Variant, device: torch.device) -> None:
    """Raise where the kernels' states or adjoints are not those of direct methods in float64."""
    problem = draw(_CIRCUITS, _NEURONS, variant.rectified)
    if variant.identity:
        eye = torch.eye(_NEURONS, dtype=torch.float32, device=device)
        problem = problem._replace(recurrent_weight=eye)
    y, a = exact_state(problem)
    shared = prepare(problem)
    check_state(*solve(problem, shared, TOLERANCE, TOLERANCE, MAX_ITER), y, a)
    g_y, g_a = torch.randn(2, _CIRCUITS, _NEURONS, generator=generator(), dtype=torch.float64)
    status = torch.zeros(_CIRCUITS, dtype=torch.int64, device=device)
    given = (y.float(), a.float(), status, g_y.float(), g_a.float())
    found = solve_adjoint(problem, shared, *given, 4.0 * TOLERANCE)
    check_adjoint(found, problem, y, a, g_y, g_a)
