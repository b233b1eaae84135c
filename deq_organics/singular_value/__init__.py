"""The factor that bounds a matrix's largest singular value, in one launch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..checks import is_transformed, refuse_transforms
from ..plain_tensors import plain
from ..self_check import compare, failure, generator
from ..triton_support import kernel_refusal

__all__ = ["bounding_scale", "refusal", "self_check"]

# A larger matrix does not fit into the registers of one program.
_LARGEST_SIZE = 128


def refusal(weight: Tensor) -> str | None:
    """Why :func:`bounding_scale` cannot take this matrix, as part of a sentence; None if it can."""
    if (device := kernel_refusal(weight.device)) is not None:
        return device
    if weight.dtype != torch.float32:
        return f"{weight.dtype}, only float32"
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or weight.numel() == 0:
        return f"weights of shape {tuple(weight.shape)}, only one square matrix"
    if weight.shape[0] > _LARGEST_SIZE:
        return f"{weight.shape[0]} neurons, only up to {_LARGEST_SIZE}"
    return refuse_transforms((weight,))


def self_check(weight: Tensor) -> str | None:
    """Why the kernel cannot be trusted with matrices of that size; None if it can."""
    n = weight.shape[0]
    return failure("singular-value bound", weight.device, n, lambda device: _check(n, device))


def bounding_scale(
    weight: Tensor, bound: float, differentiable: Callable[[Tensor], Tensor]
) -> Tensor:
    """``min(1, bound / sigma_max(weight))``, ``(1, 1)``, with its gradient.

    Second derivatives are those of ``differentiable``, the same function by torch.
    """
    scale: Tensor = _BoundingScale.apply(weight, bound, differentiable)
    return scale


def _check(n: int, device: torch.device) -> None:
    """Raise where the kernel does not compute what torch does in float64."""
    *rows, u, v = torch.randn(n + 2, n, generator=generator(), dtype=torch.float32)
    # The first singular value stands apart from the others.
    weight = torch.stack(rows) / n**0.5 + 3.0 * torch.outer(u, v) / (u.norm() * v.norm())
    left, values, right = torch.linalg.svd(weight.double())
    bound = 0.5 * float(values[0])
    scale, slope, row = _launch(weight.to(device), bound)
    compare("the scale", scale, torch.full((1, 1), 0.5), 1e-5)
    exact = torch.outer(left[:, 0], right[0]) * (-0.5 / values[0])
    compare("its gradient", torch.outer(slope, row), exact, 1e-4)


def _launch(weight: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """The scale ``(1, 1)`` and two vectors ``(n,)``, whose outer product is its gradient."""
    n, matrix = len(weight), plain(weight)
    scale, slope, right = weight.new_empty(1, 1), weight.new_empty(n), weight.new_empty(n)
    padded = max(16, 1 << (n - 1).bit_length())
    # Imported late: triton is needed on a GPU only.
    kernels: Any = import_module("._kernels", __package__)
    with torch.cuda.device_of(weight):
        kernels.scale_kernel[(1,)](
            matrix,
            scale,
            slope,
            right,
            n,
            bound,
            N=padded,
            num_warps=8 if padded == 128 else 4,
            enable_fp_fusion=True,
        )
    return scale, slope, right


class _BoundingScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bound: float, differentiable: Callable[[Tensor], Tensor]
    ) -> Tensor:
        scale, slope, right = _launch(weight, bound)
        ctx.differentiable = differentiable
        ctx.save_for_backward(weight, slope, right)
        return scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        weight, slope, right = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            with torch.enable_grad():
                scale = ctx.differentiable(weight)
            (result,) = torch.autograd.grad(scale, weight, grad, create_graph=True)
            return result, None, None
        return torch.outer(slope * grad[0], right), None, None
