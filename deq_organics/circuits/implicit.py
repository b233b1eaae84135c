"""Derivatives of a fixed point by the circuit's parameters, of first to third order, in all modes.

Newton's method doubles the number of terms of a power series that are right. From a fixed point
without derivatives one step, of which the matrix needs none, has the first derivatives of the
implicit function theorem, ``dx = -J^-1 df``; a second step has those up to the third order.
"""

from typing import Any

import torch
from torch import Tensor

from ..caller_warnings import warn_caller
from ..checks import is_transformed, physical
from ..errors import AdjointWarning, SteadyStateError
from .newton import solve
from .system import System

__all__ = ["differentiable"]


class _Solve(torch.autograd.Function):
    """``A^-1 b`` for ``(..., N, N)`` and ``(..., N)``, which looks at what it solved.

    A system that could not be solved gives 0 and is told, also those of derivatives.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, right: Tensor, on_failure: str) -> Tensor:
        shape = torch.broadcast_shapes(matrix.shape[:-1], right.shape)
        width = shape[-1]
        flat = matrix.expand(*shape, width).reshape(-1, width, width)
        vector = right.expand(shape).reshape(-1, width)
        found = solve(flat, vector)
        left_over = (flat @ found.unsqueeze(-1)).squeeze(-1) - vector
        terms = (flat.abs() @ found.abs().unsqueeze(-1)).squeeze(-1) + vector.abs()
        error = left_over.abs().amax(-1) / terms.amax(-1)
        error = torch.where((terms == 0).all(-1), 0.0, error)
        failed = ~(error <= 512.0 * torch.finfo(vector.dtype).eps)
        _report(failed, on_failure)
        return torch.where(failed.unsqueeze(-1), 0.0, found).reshape(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        matrix, right, ctx.on_failure = inputs
        ctx.shapes = matrix.shape, right.shape
        ctx.save_for_backward(matrix, output)
        ctx.save_for_forward(matrix, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        matrix, found = ctx.saved_tensors
        adjoint = _Solve.apply(matrix.mT, grad, ctx.on_failure)
        by_matrix = -adjoint.unsqueeze(-1) * found.unsqueeze(-2)
        return by_matrix.sum_to_size(ctx.shapes[0]), adjoint.sum_to_size(ctx.shapes[1]), None

    @staticmethod
    def jvp(ctx: Any, matrix_t: Tensor | None, right_t: Tensor | None, _: None) -> Tensor:
        matrix, found = ctx.saved_tensors
        right = torch.zeros_like(found) if right_t is None else right_t
        if matrix_t is not None:
            right = right - (matrix_t @ found.unsqueeze(-1)).squeeze(-1)
        solution: Tensor = _Solve.apply(matrix, right, ctx.on_failure)
        return solution


def _report(failed: Tensor, on_failure: str) -> None:
    failed = physical(failed)
    count = int(failed.sum())
    if count == 0:
        return
    message = (
        f"a linear system of the derivatives of {count} of {failed.numel()} circuits could not be "
        "solved (their Jacobian is close to singular)"
    )
    if on_failure == "error":
        raise SteadyStateError(message)
    warn_caller(f"{message}; their gradient is left out", AdjointWarning)


def differentiable(system: System, state: Tensor, converged: Tensor, on_failure: str) -> Tensor:
    """The fixed points ``(..., N)`` as a function of the circuit's parameters.

    Args:
        system: The circuits.
        state: The fixed points without derivatives, ``(..., N)``.
        converged: Which of them, ``(...)``, are fixed points; the others get no derivative.
        on_failure: What to do where a linear system of the derivatives has no solution.
    """
    solved = converged.unsqueeze(-1)
    # Elsewhere the field may not be finite, which would poison what the circuits share.
    point = torch.where(solved, state, system.plain(system.rest, state.shape))
    slope = system.field(point)
    if not _depends(slope):
        return state
    minus = -torch.eye(system.width, dtype=state.dtype, device=state.device)
    square = solved.unsqueeze(-1)
    jacobian = system.plain(system.jacobian(point), (*state.shape, system.width))
    jacobian = torch.where(square, jacobian, minus)
    first = point - _Solve.apply(jacobian, torch.where(solved, slope, 0.0), on_failure)
    slope = torch.where(solved, system.field(first), 0.0)
    jacobian = torch.where(square, system.jacobian(first), minus)
    second = first - _Solve.apply(jacobian, slope, on_failure)
    return torch.where(solved, second, state)


def _depends(slope: Tensor) -> bool:
    """Whether anything that is differentiated enters the equations."""
    tangent = torch.autograd.forward_ad.unpack_dual(slope).tangent
    tracked = slope.requires_grad and torch.is_grad_enabled()
    return tracked or is_transformed(slope) or tangent is not None
