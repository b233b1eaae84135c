"""The factor that bounds a matrix's largest singular value, in one launch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..._triton import kernel_refusal
from ..._validation import is_transformed, refuse_transforms

__all__ = ["applies", "bounding_scale"]

# A larger matrix does not fit into the registers of one program.
_LARGEST_SIZE = 128


def applies(weight: Tensor) -> bool:
    """Whether :func:`bounding_scale` can take this matrix."""
    return (
        kernel_refusal(weight.device) is None
        and weight.ndim == 2
        and weight.shape[0] == weight.shape[1]
        and 0 < weight.shape[0] <= _LARGEST_SIZE
        and weight.dtype == torch.float32
        and refuse_transforms((weight,)) is None
    )


def bounding_scale(
    weight: Tensor, bound: float, differentiable: Callable[[Tensor], Tensor]
) -> Tensor:
    """``min(1, bound / sigma_max(weight))``, ``(1, 1)``, with its gradient.

    Second derivatives are those of ``differentiable``, the same function by torch.
    """
    scale: Tensor = _BoundingScale.apply(weight, bound, differentiable)
    return scale


class _BoundingScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bound: float, differentiable: Callable[[Tensor], Tensor]
    ) -> Tensor:
        n, matrix = len(weight), weight.contiguous()
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
