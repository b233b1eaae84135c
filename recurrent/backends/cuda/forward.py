"""The launch that steps a sequence, and what it keeps for the way back."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...dynamics import Model
from ..folding import Folded
from .tiles import chosen_precision, forward_tile, pack

__all__ = ["Run", "project", "run_forward"]

# Elements of one state variable in a launch that keeps nothing: its inputs take three times this.
_SPAN_ELEMENTS = 1 << 25


class Run(NamedTuple):
    """Results, and what is kept of every step if anything is; ``T + 1`` slots begin with step 0."""

    ys: Tensor
    """``y``, ``(T + 1, B, n)``; without slot 0, ``(T, B, n)``, if nothing is kept."""
    y: Tensor
    a: Tensor
    last_gains: Tensor
    """``b`` beside ``b0`` after the last step, ``(B, 2n)``."""
    activities: Tensor
    """``a``, ``(T + 1, B, n)``."""
    gates: Tensor | None
    """``f``, ``(T, B, 2n)``; None where the gains are fixed."""
    recurrent: Tensor
    """``u``, ``(T, B, n)``."""
    gains: Tensor
    """Before each step and after the last, ``(T + 1, B, 2n)``; ``(1, B, 2n)`` where fixed."""


def run_forward(
    model: Model, weights: Folded, x: Tensor, y: Tensor, a: Tensor, gains: Tensor, keep: bool
) -> Run:
    """Step through ``x`` ``(T, B, input_size)`` from ``y``, ``a`` ``(B, n)``, ``gains`` (B, 2n)."""
    from ._kernels import sequence_kernel

    steps, samples, neurons = x.shape[0], *y.shape
    slots = steps + 1 if keep else 0
    ys = y.new_empty(max(slots, steps), samples, neurons)
    activities = y.new_empty(slots, samples, neurons)
    dynamic = weights.gates is not None
    kept_gains = gains.new_empty(slots if dynamic else int(keep), samples, 2 * neurons)
    if keep:
        for kept, first in ((ys, y), (activities, a), (kept_gains, gains)):
            kept[0] = first
    y, a, gains = (tensor.clone(memory_format=torch.contiguous_format) for tensor in (y, a, gains))
    tile = forward_tile(neurons)
    precision = chosen_precision()
    packed = pack(weights, tile, precision.dtype, transpose=False)
    span = steps if keep else max(1, _SPAN_ELEMENTS // max(1, y.numel()))
    for start in range(0, steps, span):
        rows = x[start : start + span]
        drives = project(rows, weights.input_weight)
        gates = None if weights.gates is None else project(rows, weights.gates.weight_x)
        sequence_kernel[(-(-samples // tile.samples),)](
            packed,
            weights.step_y,
            weights.step_a,
            weights.semisaturation,
            None if weights.gates is None else weights.gates.step,
            y,
            a,
            gains,
            drives,
            gates,
            ys[int(keep) + start :],
            activities[1:] if keep else None,
            kept_gains[1:] if keep and dynamic else None,
            len(rows),
            samples,
            neurons,
            RECTIFIED=model.rectified,
            AFTER_WEIGHTS=model.after_weights,
            IDENTITY=weights.identity,
            DYNAMIC=dynamic,
            KEEP=keep,
            **tile.arguments(weights, precision, y.device),
        )
        written = (y, a, gains, drives, gates, ys, activities, kept_gains)
        # Who kept one of them (a selective checkpoint does) learns that a kernel has written it.
        increment_version([tensor for tensor in written if tensor is not None])
    return Run(ys, y, a, gains, activities, gates, drives, kept_gains)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """``weight x`` of all steps, ``(T, B, rows of weight)``, in memory that may be written over."""
    out = x.new_empty(*x.shape[:2], weight.shape[0])
    # Not a product of its own: selective checkpoints keep those.
    torch.mm(x.flatten(0, 1), weight.mT, out=out.flatten(0, 1))
    return out
