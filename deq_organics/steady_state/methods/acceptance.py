"""What counts as solved: the check of every solver's result, whatever the solver says of it."""

import torch
from torch import Tensor

from ...equations import power
from ...problem import Problem
from ..status import Solution, Status

__all__ = ["accept", "attainable", "is_within_reach", "natural_sizes"]

_FAR_AWAY = 1e8


def attainable(tol: float, dtype: torch.dtype) -> float:
    """The residual that counts as solved: ``tol``, or 16 eps where rounding allows no less."""
    return max(tol, 16.0 * torch.finfo(dtype).eps)


def accept(
    problem: Problem,
    solution: Solution,
    tol: float,
    refusal: Status = Status.MAX_ITERATIONS,
) -> Solution:
    """The solution with finite states and the residual that they really have.

    A circuit that is said to have converged, and has not by that residual, gets the status
    ``refusal``; or NOT_REPRESENTABLE, where the numbers of the dtype alone are to blame.
    """
    y, a = solution.y, solution.a
    finite = (torch.isfinite(y) & torch.isfinite(a)).all(-1, keepdim=True)
    y, a = torch.where(finite, y, 0.0), torch.where(finite, a, problem.inhibitory_drive)
    residual = problem.relative_residual(y, a)
    solved = finite.squeeze(-1) & (residual <= attainable(tol, y.dtype))
    refused = ~solved & (solution.status == Status.CONVERGED)
    grainy = finite.squeeze(-1) & (problem.graininess(y, a) > attainable(tol, y.dtype))
    reason = torch.where(grainy, int(Status.NOT_REPRESENTABLE), int(refusal))
    status = torch.where(refused, reason, solution.status)
    return solution._replace(y=y, a=a, residual=residual, status=status)


def natural_sizes(problem: Problem) -> tuple[Tensor, Tensor]:
    """What ``|y|`` and ``a`` are of the order of, each ``(B,)``, in whatever units.

    ``y`` follows its drive, or grows until ``W |y|^m`` is of the order of 1; ``a`` is ``c`` and
    the pool of the drive, or of the order of 1, where the recurrence changes its sign.
    """
    largest = problem.normalization_weight.amax((-2, -1))
    drive = problem.input_drive.abs().amax(-1)
    m = problem.exponent
    if isinstance(m, Tensor):
        # Of the neuron whose exponent makes it largest.
        pooling = largest.unsqueeze(-1).pow(1.0 / m)
        own = torch.where(pooling > 0, 1.0 / pooling, 0.0).amax(-1)
        pool = power(pooling * drive.unsqueeze(-1), m).amax(-1)
    else:
        pooling = largest.pow(1.0 / m)
        own = torch.where(pooling > 0, 1.0 / pooling, 0.0)
        pool = power(pooling * drive, m)
    return drive + own, 1.0 + problem.inhibitory_drive.amax(-1) + pool


def is_within_reach(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Whether states are not so far away ``(B,)`` that rounding alone makes the equations hold."""
    size_y, size_a = natural_sizes(problem)
    return (y.abs().amax(-1) <= _FAR_AWAY * size_y) & (a.amax(-1) <= _FAR_AWAY * size_a)
