"""The gated input drive of a layer by one kernel, and its gradient by another."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..checks import is_transformed, refuse_transforms
from ..self_check import compare, failure, generator
from ..triton_support import kernel_refusal

__all__ = ["check", "gated_drive", "refusal", "self_check"]

# One block of a program.
_LARGEST_SIZE = 8192

_Differentiable = Callable[[Tensor, Tensor], Tensor]
_Forward = Callable[[Tensor, Tensor], Tensor]
_Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def refusal(drive: Tensor, logit: Tensor) -> str | None:
    """Why :func:`gated_drive` cannot take these, as part of a sentence; None if it can."""
    if (device := kernel_refusal(drive.device)) is not None:
        return device
    if drive.dtype != torch.float32:
        return f"{drive.dtype}, only float32"
    if drive.shape[-1] > _LARGEST_SIZE:
        return f"{drive.shape[-1]} neurons, only up to {_LARGEST_SIZE}"
    if drive.numel() == 0:
        return "an empty batch"
    return refuse_transforms((drive, logit))


def self_check(drive: Tensor) -> str | None:
    """Why the kernels cannot be trusted with drives of that size; None if they can."""
    n = drive.shape[-1]
    return failure(
        "gated drive", drive.device, n, lambda device: check(n, device, _forward, _backward)
    )


def gated_drive(
    drive: Tensor,
    logit: Tensor,
    differentiable: _Differentiable,
    kernels: tuple[_Forward, _Backward] | None = None,
) -> Tensor:
    """``sigmoid(logit) drive / |drive|`` for both ``(*, n)``; 0 for a drive that is 0.

    By the Triton ``kernels``, or by those that are given. Second derivatives are those of
    ``differentiable``, the same function by torch.
    """
    gated: Tensor = _GatedDrive.apply(
        drive, logit, differentiable, kernels or (_forward, _backward)
    )
    return gated


def check(n: int, device: torch.device, forward: _Forward, backward: _Backward) -> None:
    """Raise where the kernels do not compute what torch does in float64."""
    drive, logit, grad = torch.randn(3, 3, n, generator=generator(), dtype=torch.float32)
    leaves = [part.double().requires_grad_() for part in (drive, logit)]
    with torch.enable_grad():
        exact = leaves[1].sigmoid() * torch.nn.functional.normalize(leaves[0], eps=0.0)
        exact_grads = torch.autograd.grad(exact, leaves, grad.double())
    drive, logit, grad = (part.to(device) for part in (drive, logit, grad))
    compare("the gated drive", forward(drive, logit), exact, 1e-5)
    by_drive, by_logit = backward(drive, logit, grad)
    compare("the gradient by the logit", by_logit, exact_grads[1], 1e-5)
    # One neuron alone has length 1: its gradient is 0.
    if n > 1:
        compare("the gradient by the drive", by_drive, exact_grads[0], 1e-4)


def _forward(drive: Tensor, logit: Tensor) -> Tensor:
    gated = torch.empty_like(drive, memory_format=torch.contiguous_format)
    _launch("gated_drive_kernel", drive.contiguous(), logit.contiguous(), gated)
    return gated


def _backward(drive: Tensor, logit: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    arguments = [part.contiguous() for part in (drive, logit, grad)]
    grad_drive, grad_logit = torch.empty_like(arguments[0]), torch.empty_like(arguments[0])
    _launch("gated_drive_gradient_kernel", *arguments, grad_drive, grad_logit)
    return grad_drive, grad_logit


class _GatedDrive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        drive: Tensor,
        logit: Tensor,
        differentiable: _Differentiable,
        kernels: tuple[_Forward, _Backward],
    ) -> Tensor:
        forward, ctx.backward_kernel = kernels
        gated = forward(drive, logit)
        ctx.differentiable = differentiable
        ctx.save_for_backward(drive, logit)
        return gated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        drive, logit = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            with torch.enable_grad():
                gated = ctx.differentiable(drive, logit)
            by_drive, by_logit = torch.autograd.grad(gated, (drive, logit), grad, create_graph=True)
            return by_drive, by_logit, None, None
        return *ctx.backward_kernel(drive, logit, grad), None, None


def _launch(name: str, *tensors: Tensor) -> None:
    n = tensors[0].shape[-1]
    # Imported late: triton is needed on a GPU only.
    kernel = getattr(import_module("._kernels", __package__), name)
    with torch.cuda.device_of(tensors[0]):
        kernel[(tensors[0].numel() // n,)](
            *tensors, n, N=max(16, 1 << (n - 1).bit_length()), num_warps=1, enable_fp_fusion=True
        )
