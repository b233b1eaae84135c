"""The launch that takes the adjoint back through a sequence, and the products after it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...dynamics import Model
from ..folding import Folded, Gates
from .forward import project
from .tiles import adjoint_tile, chosen_precision, pack

__all__ = ["Kept", "run_backward"]


class Kept(NamedTuple):
    """The input and what the forward pass kept; the states are those before each step."""

    x: Tensor
    ys: Tensor
    """``y``, ``(T, B, n)``."""
    activities: Tensor
    """``a``, ``(T, B, n)``."""
    gates: Tensor | None
    recurrent: Tensor
    gains: Tensor
    """See :class:`.forward.Run`."""


class _Emitted(NamedTuple):
    """Gradients of every step, ``(T, B, ...)``, and their sums."""

    recurrent: Tensor
    """Of ``u``, before its rectifier."""
    activity: Tensor
    """Of ``a'``."""
    gates: Tensor | None
    """Before their sigmoid."""
    drive: Tensor
    """Before its rectifier."""
    sums: Tensor
    """Of ``keep_y``, ``keep_a``, ``semisaturation`` and both halves of ``gates.step``, (5, n)."""


def run_backward(
    model: Model,
    weights: Folded,
    kept: Kept,
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x``, the initial ``y``, ``a`` and gains, and the folded parameters."""
    grad_ys, *grad_last = grads
    samples, neurons = kept.ys.shape[1:]
    adjoints = [
        kept.ys.new_zeros(samples, width)
        if grad is None
        else grad.clone(memory_format=torch.contiguous_format)
        for grad, width in zip(grad_last, (neurons, neurons, 2 * neurons), strict=True)
    ]
    emitted = _launch(model, weights, kept, grad_ys, adjoints)
    grad_x = None
    if wanted[0]:
        grad_x = emitted.drive.flatten(0, 1) @ weights.input_weight
        if emitted.gates is not None and weights.gates is not None:
            grad_x.addmm_(emitted.gates.flatten(0, 1), weights.gates.weight_x)
        grad_x = grad_x.view_as(kept.x)
    return grad_x, *adjoints, *_weight_gradients(model, weights, kept, emitted).flat()


def _launch(
    model: Model, weights: Folded, kept: Kept, grad_ys: Tensor | None, adjoints: list[Tensor]
) -> _Emitted:
    """Run the kernel; ``adjoints`` go from the last state's to the first's in place."""
    from ._kernels import adjoint_kernel

    steps, samples, neurons = kept.ys.shape
    dynamic = weights.gates is not None
    drives = project(kept.x, weights.input_weight)
    recurrent, activity, drive = (torch.empty_like(drives) for _ in range(3))
    gates = torch.empty_like(kept.gates) if kept.gates is not None else None
    tile = adjoint_tile(neurons)
    programs = -(-samples // tile.samples)
    sums = drives.new_empty(programs, 5, tile.padded)
    precision = chosen_precision()
    adjoint_kernel[(programs,)](
        pack(weights, tile, precision.dtype, transpose=True),
        weights.keep_y,
        weights.keep_a,
        weights.semisaturation,
        None if weights.gates is None else weights.gates.step,
        *adjoints,
        drives,
        kept.gates,
        kept.recurrent,
        kept.ys,
        kept.activities,
        kept.gains,
        None if grad_ys is None else grad_ys.contiguous(),
        recurrent,
        activity,
        gates,
        drive,
        sums,
        steps,
        samples,
        neurons,
        RECTIFIED=model.rectified,
        AFTER_WEIGHTS=model.after_weights,
        IDENTITY=weights.identity,
        DYNAMIC=dynamic,
        GIVEN=grad_ys is not None,
        **tile.arguments(weights, precision, drives.device),
    )
    return _Emitted(recurrent, activity, gates, drive, sums.sum(0)[:, :neurons])


def _weight_gradients(model: Model, weights: Folded, kept: Kept, emitted: _Emitted) -> Folded:
    """Gradients of the folded parameters, each product one over all steps and samples."""
    rates = kept.ys.clamp_min(0.0) if model.rectified else kept.ys
    source = kept.ys if model.after_weights else rates
    if weights.identity:
        recurrent = (emitted.recurrent * source).sum((0, 1))
    else:
        recurrent = _product(emitted.recurrent, source)
    pool = rates.square().mul_(kept.activities.clamp_min(0.0))
    gates = None
    if emitted.gates is not None:
        gates = Gates(
            _product(emitted.gates, kept.x),
            _product(emitted.gates, kept.ys),
            _product(emitted.gates, kept.activities),
            emitted.sums[3:].flatten(),
        )
    return Folded(
        _product(emitted.drive, kept.x),
        recurrent,
        _product(emitted.activity, pool),
        emitted.sums[0],
        emitted.sums[1],
        emitted.sums[2],
        gates,
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The sum over steps and samples of ``left right^T``."""
    return left.flatten(0, 1).mT @ right.flatten(0, 1)
