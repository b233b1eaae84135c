"""Calls of the C kernels: what they get, and what comes back."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from deq_organics.native import addresses, call, pack, padded
from deq_organics.native.memory import empty
from deq_organics.native.threads import part_count

from ...dynamics import Model
from ..by_hand import Forward
from ..folding import Folded, Gates

__all__ = ["TILE", "NativePasses"]

# Samples of a tile, and about how many rows of a segment's steps a product of gradients sums over.
TILE, GRADIENT_ROWS = 24, 48
# Multiplications that are worth a thread.
_WORTH_A_THREAD = 1 << 19

_SIZES = (
    *("steps", "batch", "neurons", "inputs", "tile", "segment", "keep"),
    *("rectified", "after_weights", "identity", "dynamic"),
)
_TENSORS = (
    *("packed_forward", "packed_backward", "packed_inputs"),
    *("step_y", "step_a", "inhibitory_drive", "step_gains", "diagonal"),
    *("x", "ys", "activities", "recurrent", "gates", "checkpoints", "y", "a", "gains"),
    *("first_y", "first_a", "grad_ys", "adjoint_y", "adjoint_a", "adjoint_gains"),
    *("grad_x", "gradients"),
)


class _Sequence(ctypes.Structure):
    """``struct sequence`` of organics.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


class NativePasses:
    """One call forward and one back, each spread over threads."""

    name = "native"

    def forward(
        self,
        model: Model,
        weights: Folded,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gains: Tensor,
        keep: bool,
    ) -> Forward:
        steps, batch, n = x.shape[0], *y.shape
        y, a, gains = y.clone(), a.clone(), gains.clone()
        segment = _segment(steps)
        kept: dict[str, Tensor | None] = dict.fromkeys(
            ("activities", "recurrent", "gates", "checkpoints")
        )
        ys = empty((steps, batch, n), x)
        first: tuple[Tensor | None, Tensor | None] = (None, None)
        if keep:
            first = (y.clone(), a.clone())
            kept["activities"], kept["recurrent"] = (empty((steps, batch, n), x) for _ in range(2))
            if weights.gates is not None:
                kept["gates"] = empty((steps, batch, 2 * n), x)
            kept["checkpoints"] = empty((-(-steps // segment), batch, 2 * n), x)
        wzx, wr, w = _matrices(weights)
        gates = weights.gates
        halves = [] if gates is None else [part.chunk(2) for part in gates[:3]]
        forward = [wzx, *wr, w, *(half[i] for i in range(2) for half in halves)]
        tensors = {
            "packed_forward": pack(torch.cat([part.mT for part in forward])),
            "x": x,
            "ys": ys,
            "y": y,
            "a": a,
            "gains": gains,
            **kept,
        }
        arguments = _arguments(model, weights, x, y, segment, keep, tensors)
        call("sequence_forward", arguments, batch, _threads(steps, batch, n))
        written = (ys, y, a, gains, *kept.values())
        # Who kept one of them (a selective checkpoint does) learns that a kernel has written it.
        increment_version([tensor for tensor in written if tensor is not None])
        return Forward(ys, y, a, gains, (x, *first, ys if keep else None, *kept.values()))

    def backward(
        self,
        model: Model,
        weights: Folded,
        kept: tuple[Any, ...],
        grads: Sequence[Tensor | None],
        wanted: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        x, first_y, first_a, ys, activities, recurrent, gates, checkpoints = kept
        steps, batch, n = ys.shape
        grad_ys, *grad_last = grads
        adjoints = [
            ys.new_zeros(batch, width) if grad is None else grad.clone()
            for grad, width in zip(grad_last, (n, n, 2 * n), strict=True)
        ]
        grad_x = empty(x.shape, x) if wanted[0] else None
        wzx, wr, w = _matrices(weights)
        scaled: list[tuple[Tensor, ...]] = []
        if weights.gates is not None:
            # The factor k of a gate's adjoint, folded into the weights that propagate it.
            column = weights.gates.step.unsqueeze(-1)
            scaled = [(column * part).chunk(2) for part in weights.gates[:3]]
        backward = [wzx.mT, w, *wr, *(half for part in scaled[1:] for half in part)]
        inputs = [wzx, *(half for part in scaled[:1] for half in part)]
        parts = part_count(batch, _threads(steps, batch, n))
        layout = _GradientLayout(weights, x.shape[-1])
        gradients = ys.new_zeros(parts, layout.size)
        tensors = {
            "packed_backward": pack(torch.cat(backward)),
            "packed_inputs": None if grad_x is None else pack(torch.cat(inputs)),
            "x": x,
            "ys": ys,
            "activities": activities,
            "recurrent": recurrent,
            "gates": gates,
            "checkpoints": checkpoints,
            "first_y": first_y,
            "first_a": first_a,
            "grad_ys": grad_ys,
            **dict(zip(("adjoint_y", "adjoint_a", "adjoint_gains"), adjoints, strict=True)),
            "grad_x": grad_x,
        }
        arguments = [
            _arguments(
                model, weights, x, ys[0], _segment(steps), True, {**tensors, "gradients": own}
            )
            for own in gradients.unbind()
        ]
        call("sequence_adjoint", arguments, batch, parts)
        return grad_x, *adjoints, *layout.split(gradients.sum(0), weights).flat()


class _GradientLayout:
    """Where the gradients of the folded parameters lie in a thread's sums; see organics.h."""

    def __init__(self, weights: Folded, inputs: int) -> None:
        n = weights.step_y.shape[0]
        self.n, self.width = n, padded(n)
        self._rows = [1 if weights.identity else n, n]
        if weights.gates is not None:
            self._rows += [n] * 4
        self._rows += [inputs] * (1 if weights.gates is None else 3)
        self._rows.append(5)
        self.size = sum(self._rows) * self.width

    def split(self, sums: Tensor, weights: Folded) -> Folded:
        """The gradients, from those sums ``(size,)``."""
        parts = sums.view(-1, self.width)[:, : self.n].split(self._rows)
        wr, w, *others, rates = parts
        gates = None
        step_y, step_a, drive, *gains = rates.unbind()
        if weights.gates is not None:
            by, ba, b0y, b0a, wzx, bx, b0x = others
            column = weights.gates.step.unsqueeze(-1)
            gates = Gates(
                column * torch.cat([bx.mT, b0x.mT]),
                column * torch.cat([by, b0y]),
                column * torch.cat([ba, b0a]),
                torch.cat(gains),
            )
        else:
            (wzx,) = others
        # What was summed are the gradients of 1 - k_y and 1 - k_a.
        return Folded(
            wzx.mT.contiguous(),
            wr[0].clone() if weights.identity else wr.contiguous(),
            w.contiguous(),
            -step_y,
            -step_a,
            drive.clone(),
            gates,
        )


def _matrices(weights: Folded) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """``Wzx``, ``Wr`` or nothing where it is diagonal, and ``W``, folded."""
    recurrent = () if weights.identity else (weights.recurrent_weight,)
    return weights.input_weight, recurrent, weights.normalization_weight


def _segment(steps: int) -> int:
    """Steps of a segment; its gradients are one product over its steps and a tile's samples."""
    return min(steps, max(1, GRADIENT_ROWS // TILE))


def _threads(steps: int, batch: int, n: int) -> int:
    return steps * batch * n * (n + 8) * 6 // _WORTH_A_THREAD


def _arguments(
    model: Model,
    weights: Folded,
    x: Tensor,
    y: Tensor,
    segment: int,
    keep: bool,
    tensors: dict[str, Tensor | None],
) -> _Sequence:
    """Everything for a call; its tensors, contiguous and float32, have to outlive it."""
    sizes = {
        "steps": x.shape[0],
        "batch": y.shape[0],
        "neurons": y.shape[1],
        "inputs": x.shape[2],
        "tile": min(TILE, max(1, y.shape[0])),
        "segment": segment,
        "keep": int(keep),
        "rectified": int(model.rectified),
        "after_weights": int(model.after_weights),
        "identity": int(weights.identity),
        "dynamic": int(weights.gates is not None),
    }
    given = {
        "step_y": weights.step_y,
        "step_a": weights.step_a,
        "inhibitory_drive": weights.semisaturation,
        "step_gains": None if weights.gates is None else weights.gates.step,
        "diagonal": weights.recurrent_weight if weights.identity else None,
        **tensors,
    }
    return _Sequence(**sizes, **addresses(given))
