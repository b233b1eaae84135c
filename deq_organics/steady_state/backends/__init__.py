"""By what a steady state is computed: torch everywhere, or CUDA kernels where they apply."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...checks import refuse_transforms
from ...dispatch import Backend, Choice, Registry
from ...triton_support import kernel_refusal
from .triton import LARGEST_SIZE
from .triton.self_check import steady_state_failure

__all__ = ["BACKENDS", "Work", "choose"]


class Work(NamedTuple):
    """Circuits to solve, their tensors with any leading dimensions, and by which solver."""

    solver: str
    input_drive: Tensor
    """Has all leading dimensions of the circuits."""
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    others: tuple[Tensor, ...]
    exponent: float
    rectified: bool


class TritonBackend:
    """One program per circuit, where the kernels can take it and passed their self-check."""

    name = "cuda"

    def refusal(self, work: Work) -> str | None:
        refusal = _refusal(work)
        if refusal is not None:
            return refusal
        tensors = (
            work.input_drive,
            work.recurrent_weight,
            work.normalization_weight,
            *work.others,
        )
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in tensors
        )
        return steady_state_failure(work.input_drive, work.rectified, differentiated)


class TorchBackend:
    """Every solver, circuit, device and transform."""

    name = "torch"

    def refusal(self, work: Work) -> None:
        return None


BACKENDS: Registry[Work, Backend[Work]] = Registry(TritonBackend(), TorchBackend())


def choose(name: str, work: Work) -> Choice[str]:
    """The backend of that name, or with ``"auto"`` the fastest that can solve such circuits.

    By its name, which is what users compare and print.

    Raises:
        RuntimeError: The named backend cannot solve them.
    """
    backend, reason = BACKENDS.choose(name, work)
    return Choice(backend.name, reason)


def _refusal(work: Work) -> str | None:
    """Why the kernels cannot solve such circuits, as part of a sentence; None if they can."""
    drive, wr, w = work.input_drive, work.recurrent_weight, work.normalization_weight
    device = kernel_refusal(drive.device)
    if device is not None:
        return device
    if work.solver != "auto":
        return f"the solver {work.solver!r}, only 'auto'"
    if wr is None:
        return "circuits without recurrent weights: they have a closed form"
    if (transforms := refuse_transforms((drive, wr, w, *work.others))) is not None:
        return transforms
    if any(size != 1 for weight in (wr, w) for size in weight.shape[:-2]):
        return "weights of each circuit's own, only weights that all circuits share"
    if work.exponent != 2.0:
        return f"the exponent {work.exponent:g}, only 2"
    if drive.dtype != torch.float32:
        return f"{drive.dtype}, only float32"
    if drive.shape[-1] > LARGEST_SIZE:
        return f"{drive.shape[-1]} neurons, only up to {LARGEST_SIZE}"
    if drive.numel() == 0:
        return "an empty batch"
    return None
