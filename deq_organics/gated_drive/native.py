"""The gated input drive and its gradient by a C kernel, on a CPU."""

import ctypes

import torch
from torch import Tensor

from ..checks import refuse_transforms
from ..native import addresses, call, library, native_refusal
from ..plain_tensors import plain
from ..self_check import failure
from . import trial

__all__ = ["backward", "forward", "refusal", "self_check"]

# Values that are worth a thread.
_WORTH_A_THREAD = 1 << 17
# More than a vector of any instruction set, the last one incomplete.
_NEURONS = 21

_TENSORS = ("drive", "logit", "grad", "gated", "grad_drive", "grad_logit")


class _Gate(ctypes.Structure):
    """``struct gate`` of organics.h."""

    _fields_ = (("neurons", ctypes.c_int64), *((name, ctypes.c_void_p) for name in _TENSORS))


def refusal(drive: Tensor, logit: Tensor) -> str | None:
    """Why the kernel cannot take these, as part of a sentence; None if it can."""
    if (found := native_refusal(drive.device)) is not None:
        return found
    if type(drive.detach()) is not Tensor:
        return "tensors of a class of their own"
    if drive.dtype != torch.float32 or logit.dtype != torch.float32:
        return f"{drive.dtype}, only float32"
    if drive.numel() == 0:
        return "an empty batch"
    return refuse_transforms((drive, logit))


def self_check(drive: Tensor) -> str | None:
    """Why the kernel cannot be trusted; None if it can."""
    return failure(
        "gated drive in C",
        drive.device,
        library().instructions,
        lambda device: trial.check(_NEURONS, device, forward, backward),
    )


def forward(drive: Tensor, logit: Tensor) -> Tensor:
    """``sigmoid(logit) drive / |drive|``, ``(*, n)``."""
    gated = torch.empty_like(drive, memory_format=torch.contiguous_format)
    _run({"drive": plain(drive), "logit": plain(logit), "gated": gated})
    return gated


def backward(drive: Tensor, logit: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by drive and logit."""
    given = {"drive": drive, "logit": logit, "grad": grad}
    tensors = {name: plain(tensor) for name, tensor in given.items()}
    grad_drive, grad_logit = (torch.empty_like(tensors["drive"]) for _ in range(2))
    _run({**tensors, "grad_drive": grad_drive, "grad_logit": grad_logit})
    return grad_drive, grad_logit


def _run(tensors: dict[str, Tensor]) -> None:
    drive = tensors["drive"]
    for name, tensor in tensors.items():
        if tensor.shape != drive.shape:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(drive.shape)}"
            )
    n = drive.shape[-1]
    arguments = _Gate(neurons=n, **addresses(tensors))
    call("gate", arguments, drive.numel() // n, drive.numel() // _WORTH_A_THREAD)
