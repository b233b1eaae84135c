"""The gated input drive in one launch of a Triton kernel, and its gradient in another."""

from importlib import import_module

import torch
from torch import Tensor

from ..checks import refuse_transforms
from ..plain_tensors import plain
from ..self_check import failure
from ..triton_support import kernel_refusal
from . import trial

__all__ = ["backward", "forward", "refusal", "self_check"]

# One block of a program.
_LARGEST_SIZE = 8192


def refusal(drive: Tensor, logit: Tensor) -> str | None:
    """Why the kernels cannot take these, as part of a sentence; None if it can."""
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
        "gated drive", drive.device, n, lambda device: trial.check(n, device, forward, backward)
    )


def forward(drive: Tensor, logit: Tensor) -> Tensor:
    """``sigmoid(logit) drive / |drive|``, ``(*, n)``."""
    gated = torch.empty_like(drive, memory_format=torch.contiguous_format)
    _launch("gated_drive_kernel", plain(drive), plain(logit), gated)
    return gated


def backward(drive: Tensor, logit: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by drive and logit."""
    arguments = [plain(part) for part in (drive, logit, grad)]
    grad_drive, grad_logit = torch.empty_like(arguments[0]), torch.empty_like(arguments[0])
    _launch("gated_drive_gradient_kernel", *arguments, grad_drive, grad_logit)
    return grad_drive, grad_logit


def _launch(name: str, *tensors: Tensor) -> None:
    n = tensors[0].shape[-1]
    # Imported late: triton is needed on a GPU only.
    kernel = getattr(import_module("._kernels", __package__), name)
    with torch.cuda.device_of(tensors[0]):
        kernel[(tensors[0].numel() // n,)](
            *tensors, n, N=max(16, 1 << (n - 1).bit_length()), num_warps=1, enable_fp_fusion=True
        )
