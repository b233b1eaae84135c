"""By what a steady state is computed: torch everywhere, or CUDA kernels where they apply."""

import torch
from torch import Tensor

from ...checks import refuse_transforms
from ...dispatch import Choice
from ...triton_support import kernel_refusal
from .triton import LARGEST_SIZE
from .triton.self_check import steady_state_failure

__all__ = ["choose"]


def choose(
    name: str,
    solver: str,
    input_drive: Tensor,
    recurrent_weight: Tensor | None,
    normalization_weight: Tensor,
    others: tuple[Tensor, ...],
    exponent: float,
    rectified: bool,
) -> Choice:
    """The backend of that name, or with ``"auto"`` the fastest that can solve such circuits.

    ``input_drive`` has all leading dimensions of the circuits.

    Raises:
        RuntimeError: The named backend cannot solve them.
    """
    if name == "torch":
        return Choice(name, "named")
    refusal = _refusal(
        solver, input_drive, recurrent_weight, normalization_weight, others, exponent
    )
    if refusal is None:
        tensors = (input_drive, recurrent_weight, normalization_weight, *others)
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in tensors
        )
        refusal = steady_state_failure(input_drive, rectified, differentiated)
    if refusal is None:
        return Choice("cuda", "named" if name == "cuda" else "first choice")
    if name == "cuda":
        raise RuntimeError(
            f"backend: got 'cuda', which does not support {refusal}; "
            "expected 'torch' or 'auto' here"
        )
    return Choice("torch", f"cuda does not support {refusal}")


def _refusal(
    solver: str,
    input_drive: Tensor,
    recurrent_weight: Tensor | None,
    normalization_weight: Tensor,
    others: tuple[Tensor, ...],
    exponent: float,
) -> str | None:
    """Why the kernels cannot solve such circuits, as part of a sentence; None if they can."""
    device = kernel_refusal(input_drive.device)
    if device is not None:
        return device
    if solver != "auto":
        return f"the solver {solver!r}, only 'auto'"
    if recurrent_weight is None:
        return "circuits without recurrent weights: they have a closed form"
    weights = (recurrent_weight, normalization_weight)
    if (transforms := refuse_transforms((input_drive, *weights, *others))) is not None:
        return transforms
    if any(size != 1 for weight in weights for size in weight.shape[:-2]):
        return "weights of each circuit's own, only weights that all circuits share"
    if exponent != 2.0:
        return f"the exponent {exponent:g}, only 2"
    if input_drive.dtype != torch.float32:
        return f"{input_drive.dtype}, only float32"
    if input_drive.shape[-1] > LARGEST_SIZE:
        return f"{input_drive.shape[-1]} neurons, only up to {LARGEST_SIZE}"
    if input_drive.numel() == 0:
        return "an empty batch"
    return None
