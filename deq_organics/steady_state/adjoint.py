"""The adjoint equation ``J^T lambda = -g`` of a steady state, for ``tau = 1``.

With ``omega = W^T lambda_a`` and the factors of :func:`equations.linearize` it reads

    lambda_y - Wr^T(gain lambda_y) - excitation omega = g_y        (slope omitted)
    lambda_a + inhibition lambda_y - pool omega = g_a

In the main model ``pool = y excitation / (m a)``, so the first line turns the second into an
explicit ``omega(lambda_y)``: one equation in ``n`` unknowns is left, the transpose of the one
that the fast forward iteration solves, and it is solved in the same way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import equations
from ..norms import size_of
from ..problem import Problem
from .methods.acceleration import SecantAccelerator, rounding_part
from .methods.preconditioner import Preconditioner

__all__ = [
    "adjoint_residual",
    "solve_adjoint_dense",
    "solve_adjoint_identity",
    "solve_adjoint_iteratively",
    "tangent_residual",
]

_DEPTH = 6
_MAX_ITER = 60


def solve_adjoint_dense(problem: Problem, y: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """``lambda`` of shape ``(B, 2n)`` by one LU factorization per sample; differentiable."""
    jacobian = problem.jacobian(y, a, unit_tau=True)
    solution: Tensor = torch.linalg.solve_ex(jacobian.mT, -g)[0]
    return solution


def solve_adjoint_identity(problem: Problem, y: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """``lambda`` of shape ``(B, 2n)`` in closed form, for ``Wr = I``; differentiable."""
    lin = equations.linearize(y, a, None, problem.exponent, problem.rectified)
    g_y, g_a = g.chunk(2, -1)
    active = equations.drive(y, problem.rectified) / (problem.exponent * a)
    omega = _transposed(problem.normalization_weight, g_a - active * g_y)
    # Not 1 - gain, in which the digits of a small rate are lost.
    decay = equations.inhibitory_firing_rate(a, problem.exponent)
    if lin.slope is not None:
        decay = torch.where(lin.slope > 0, decay, 1.0)
    adjoint_y = (g_y + lin.excitation * omega) / decay
    adjoint_a = g_a - lin.inhibition * adjoint_y + lin.pool * omega
    return torch.cat([adjoint_y, adjoint_a], -1)


def adjoint_residual(
    problem: Problem, y: Tensor, a: Tensor, adjoint: Tensor, g: Tensor, *, direct: bool = False
) -> Tensor:
    """Relative residual ``(B,)`` of ``lambda``, 0 where it and ``g`` vanish.

    ``|J^T lambda + g|`` in the rows of ``y`` by ``max(|g_y|, |lambda_y|)`` and in those of ``a`` by
    ``max(|g_a|, |lambda_a|)``: their units differ. For a ``direct`` solve the terms of a row count
    too, which may be larger and cancel: no solution is closer than their rounding.
    """
    lin = problem.linearize(y, a)
    adjoint_y, adjoint_a = adjoint.chunk(2, -1)
    g_y, g_a = g.chunk(2, -1)
    recurrent = _transposed(problem.recurrent_weight, lin.gain * adjoint_y)
    if lin.slope is not None:
        recurrent = lin.slope * recurrent
    omega = _transposed(problem.normalization_weight, adjoint_a)
    excited, pooled = lin.excitation * omega, lin.pool * omega
    inhibited = lin.inhibition * adjoint_y
    return torch.hypot(
        _relative(
            recurrent - adjoint_y + excited + g_y,
            (g_y, adjoint_y, *((recurrent, excited) if direct else ())),
        ),
        _relative(
            pooled - inhibited - adjoint_a + g_a,
            (g_a, adjoint_a, *((pooled, inhibited) if direct else ())),
        ),
    )


def tangent_residual(jacobian: Tensor, tangent: Tensor, flow: Tensor) -> Tensor:
    """Relative residual ``(B,)`` of a direct solution of ``J tangent = -flow``, likewise."""
    n = flow.shape[-1] // 2
    tangent_y, tangent_a = tangent.chunk(2, -1)
    by_y = equations.matvec(jacobian[..., :n], tangent_y).chunk(2, -1)
    by_a = equations.matvec(jacobian[..., n:], tangent_a).chunk(2, -1)
    errors = [
        _relative(from_y + from_a + part, (part, own, from_y, from_a))
        for from_y, from_a, part, own in zip(
            by_y, by_a, flow.chunk(2, -1), (tangent_y, tangent_a), strict=True
        )
    ]
    return torch.hypot(*errors)


def _relative(residual: Tensor, scales: tuple[Tensor, ...]) -> Tensor:
    """The length of a residual ``(B, n)`` by that of the longest of some vectors, ``(B,)``."""
    size = size_of(*scales)
    lengths = [torch.linalg.vector_norm(vector / size, dim=-1) for vector in scales]
    longest = torch.stack(lengths).amax(0)
    longest = torch.where(longest > 0, longest, 1.0)
    return torch.linalg.vector_norm(residual / size, dim=-1) / longest


def solve_adjoint_iteratively(
    problem: Problem,
    y: Tensor,
    a: Tensor,
    g: Tensor,
    tol: float,
    precondition: Callable[[Problem], Preconditioner] = Preconditioner,
) -> tuple[Tensor, Tensor]:
    """``lambda`` ``(B, 2n)`` and its residual ``(B,)``, by matrix products shared by the batch."""
    lin = problem.linearize(y, a)
    g_y, g_a = g.chunk(2, -1)
    firing = None if lin.slope is None else lin.slope > 0
    correct = precondition(problem).at(lin.gain, firing, transpose=True)
    active = equations.drive(y, problem.rectified) / (problem.exponent * a)

    def omega_and_excess(adjoint_y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """``W^T`` of ``start`` and of what ``lambda_y`` adds, and ``lambda_y - recurrence``."""
        recurrent = _transposed(problem.recurrent_weight, lin.gain * adjoint_y)
        excess = adjoint_y - recurrent
        left = torch.addcmul(start, active, excess).addcmul_(lin.inhibition, adjoint_y, value=-1.0)
        if lin.slope is not None:
            excess = adjoint_y - lin.slope * recurrent
        return _transposed(problem.normalization_weight, left), excess

    # The equation that is left is linear in lambda_y, and solved for a right-hand side of size 1.
    nothing = torch.zeros_like(g_y)
    explicit = torch.addcmul(g_a, active, g_y, value=-1.0)
    right = torch.addcmul(g_y, lin.excitation, _transposed(problem.normalization_weight, explicit))
    size = size_of(right)
    right = right / size
    scale = torch.linalg.vector_norm(right, dim=-1)
    scale = torch.where(scale > 0, scale, 1.0)
    adjoint_y = nothing
    best, best_error = adjoint_y, torch.full_like(scale, torch.inf)
    residual = right
    accelerator = SecantAccelerator(_DEPTH, rounding_part(g.dtype))
    for step in range(_MAX_ITER):
        if step:
            omega, excess = omega_and_excess(adjoint_y, nothing)
            residual = torch.addcmul(right - excess, lin.excitation, omega)
        error = torch.linalg.vector_norm(residual, dim=-1) / scale
        better = error < best_error
        best = torch.where(better.unsqueeze(-1), adjoint_y, best)
        best_error = torch.where(better, error, best_error)
        if (best_error <= tol).all():
            break
        adjoint_y = accelerator.propose(adjoint_y, correct(residual))
    best = best * size
    omega, _ = omega_and_excess(best, explicit)
    adjoint_a = g_a - lin.inhibition * best + lin.pool * omega
    adjoint = torch.cat([best, adjoint_a], -1)
    return adjoint, adjoint_residual(problem, y, a, adjoint, g)


def _transposed(matrix: Tensor | None, vector: Tensor) -> Tensor:
    return equations.matvec(None if matrix is None else matrix.mT, vector)
