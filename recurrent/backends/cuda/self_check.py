"""The self-check of the kernels of sequences: a small batch against the cell's own steps."""

from typing import NamedTuple

import torch

from deq_organics.self_check import failure

from ...dynamics import Model
from ..base import SequenceWork
from ..trial import Trial, try_passes
from .passes import CudaPasses
from .tiles import Precision, Tile, adjoint_tile, chosen_precision, forward_tile

__all__ = ["sequence_failure"]

# Relative errors of states and gradients, by the products' operands.
_BOUNDS = {"tf32x3": (1e-5, 1e-4), "tf32": (5e-3, 2e-2), "bfloat16": (2e-2, 1e-1)}


class _Variant(NamedTuple):
    """What the compiler makes a program of its own for."""

    model: Model
    neurons: int
    identity: bool
    dynamic: bool
    differentiated: bool
    precision: Precision
    aligned: bool
    """Whether each step's part of a result begins at a multiple of 16 bytes."""
    tiles: tuple[Tile, Tile]


def sequence_failure(sequence: SequenceWork) -> str | None:
    """Why the kernels cannot be trusted with such sequences; None if they can."""
    samples, neurons = sequence.state.y.shape
    identity = sequence.parameters.recurrent_weight is None
    dynamic = sequence.parameters.gain is not None
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in sequence.tensors()
    )
    variant = _Variant(
        sequence.model,
        neurons,
        identity,
        dynamic,
        differentiated,
        chosen_precision(),
        samples * neurons % 4 == 0,
        (forward_tile(neurons), adjoint_tile(neurons)),
    )
    return failure(
        "sequence kernels", sequence.x.device, variant, lambda device: _check(variant, device)
    )


def _check(variant: _Variant, device: torch.device) -> None:
    """Raise where the kernels do not compute what the cell does in float64."""
    name = "bfloat16" if variant.precision.dtype == torch.bfloat16 else variant.precision.dot
    trial = Trial(
        variant.model,
        # More than one tile of samples, the last one incomplete.
        variant.tiles[0].samples + (4 if variant.aligned else 1),
        variant.neurons,
        variant.identity,
        variant.dynamic,
        variant.differentiated,
        *_BOUNDS[name],
    )
    with torch.cuda.device_of(torch.empty(0, device=device)):
        try_passes(CudaPasses(), trial, device)
