"""The gated input drive of a layer, in one launch, and its gradient in another."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..._triton import kernel_refusal
from ..._validation import is_transformed, refuse_transforms

__all__ = ["applies", "gated_drive"]

# One block of a program.
_LARGEST_SIZE = 8192

_Differentiable = Callable[[Tensor, Tensor], Tensor]


def applies(drive: Tensor, logit: Tensor) -> bool:
    """Whether :func:`gated_drive` can take these."""
    return (
        kernel_refusal(drive.device) is None
        and drive.dtype == torch.float32
        and drive.shape[-1] <= _LARGEST_SIZE
        and drive.numel() > 0
        and refuse_transforms((drive, logit)) is None
    )


def gated_drive(drive: Tensor, logit: Tensor, differentiable: _Differentiable) -> Tensor:
    """``sigmoid(logit) drive / |drive|`` for both ``(*, n)``; 0 for a drive that is 0.

    Second derivatives are those of ``differentiable``, the same function by torch.
    """
    gated: Tensor = _GatedDrive.apply(drive, logit, differentiable)
    return gated


class _GatedDrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drive: Tensor, logit: Tensor, differentiable: _Differentiable) -> Tensor:
        gated = torch.empty_like(drive, memory_format=torch.contiguous_format)
        _launch("gated_drive_kernel", drive.contiguous(), logit.contiguous(), gated)
        ctx.differentiable = differentiable
        ctx.save_for_backward(drive, logit)
        return gated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        drive, logit = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            with torch.enable_grad():
                gated = ctx.differentiable(drive, logit)
            by_drive, by_logit = torch.autograd.grad(gated, (drive, logit), grad, create_graph=True)
            return by_drive, by_logit, None
        arguments = [part.contiguous() for part in (drive, logit, grad)]
        grad_drive, grad_logit = torch.empty_like(arguments[0]), torch.empty_like(arguments[0])
        _launch("gated_drive_gradient_kernel", *arguments, grad_drive, grad_logit)
        return grad_drive, grad_logit, None


def _launch(name: str, *tensors: Tensor) -> None:
    n = tensors[0].shape[-1]
    # Imported late: triton is needed on a GPU only.
    kernel = getattr(import_module("._kernels", __package__), name)
    with torch.cuda.device_of(tensors[0]):
        kernel[(tensors[0].numel() // n,)](
            *tensors, n, N=max(16, 1 << (n - 1).bit_length()), num_warps=1, enable_fp_fusion=True
        )
