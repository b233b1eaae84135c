"""The self-check of the C kernels of sequences: a small batch against the cell's own steps."""

from typing import NamedTuple

import torch

from deq_organics.native import library
from deq_organics.self_check import failure

from ...dynamics import Model
from ..base import SequenceWork
from ..trial import Trial, try_passes
from .passes import TILE, NativePasses

__all__ = ["native_failure"]

# More than a panel of any instruction set, the last one incomplete.
_NEURONS = 37
_STATE_BOUND, _GRADIENT_BOUND = 1e-5, 1e-4


class _Variant(NamedTuple):
    """What the kernels have code of its own for."""

    instructions: str
    model: Model
    identity: bool
    dynamic: bool


def native_failure(sequence: SequenceWork) -> str | None:
    """Why the kernels cannot be trusted with such sequences; None if they can."""
    variant = _Variant(
        library().instructions,
        sequence.model,
        sequence.parameters.recurrent_weight is None,
        sequence.parameters.gain is not None,
    )
    return failure(
        "native sequence kernels",
        sequence.x.device,
        variant,
        lambda device: _check(variant, device),
    )


def _check(variant: _Variant, device: torch.device) -> None:
    """Raise where the kernels do not compute what the cell does in float64."""
    _, model, identity, dynamic = variant
    bounds = (_STATE_BOUND, _GRADIENT_BOUND)
    # More than one tile of samples, the last one incomplete.
    trial = Trial(model, TILE + 7, _NEURONS, identity, dynamic, True, *bounds)
    try_passes(NativePasses(), trial, device)
