r"""Backpropagation through time by hand, as one autograd function.

The time constants are folded into the weights outside of the function (autograd takes their
gradient from there), so that with ``k = dt / tau`` per neuron a step reads::

    y' = (1 - k_y) y + b z + (1 - s) u      z = [relu](k_y Wzx x), u = k_y Wr [relu](y), s = a+
    a' = (1 - k_a) a + c b0^2 + (k_a W) p   p = [relu](y)^2 relu(a), c = k_a sigma^2
    g' = (1 - k) g + k f                    f = sigmoid(Wgx x + Wgy y + Wga a), g = (b, b0)

The input enters by one product for all steps; a step costs four products: ``Wr``, ``W``, and the
stacked weights of both gains on ``y`` and on ``a``. With adjoints ``v, w, h`` of ``y', a', g'``::

    dy = (1 - k_y) v + [y > 0] ((k_y Wr)^T ((1 - s) v) + 2 relu(y) relu(a) (k_a W)^T w) + Wgy^T q
    da = (1 - k_a) w + [a > 0] (relu(y)^2 (k_a W)^T w - u v / (2 s)) + Wga^T q
    dg = (1 - k) h + (z v, 2 c b0 w)        q = k f (1 - f) h

Kept for the backward pass are ``y``, ``a``, ``f`` and ``u``, five values per neuron and step; the
gains are stepped again and everything else is computed anew, for a segment of steps at once.
Adjoints are kept for one segment; its weight gradients are single products over all its steps.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_organics._validation import is_transformed

from ...dynamics import Model, State
from ..base import Sequence
from ..folding import Folded, fold
from .backward import Kept, run_backward
from .forward import run_forward

__all__ = ["FusedBackend"]


class FusedBackend:
    """First derivatives of everything, in single or double precision, on any device."""

    name = "fused"

    def refusal(self, sequence: Sequence) -> str | None:
        tensors = list(sequence.tensors())
        if any(is_transformed(tensor) for tensor in tensors):
            return "torch.func transforms"
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            return "forward-mode derivatives"
        dtype = sequence.x.dtype
        if dtype not in (torch.float32, torch.float64):
            return f"{dtype}, only float32 and float64"
        return None

    def run(self, sequence: Sequence) -> tuple[Tensor, State]:
        y, a, *gains = sequence.state
        arguments = (sequence.x, y, a, torch.cat(gains, -1), *fold(sequence.parameters).flat())
        needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
        ys, y, a, stacked = _FusedSequence.apply(sequence.model, needed, *arguments)
        return ys, State(y, a, *stacked.chunk(2, -1))


class _FusedSequence(torch.autograd.Function):
    """``(x, y, a, g) -> (ys, y_T, a_T, g_T)``; ``g`` stacks both gains, ``(B, 2n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        needed: bool,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gains: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = run_forward(model, Folded.of(flat), x, y, a, gains, keep=needed)
        ctx.set_materialize_grads(False)
        if needed:
            ctx.model, ctx.segment = model, run.segment
            ctx.save_for_backward(
                x, y, a, run.ys, run.activities, run.gates, run.recurrent, run.checkpoints, *flat
            )
        return run.ys, run.y, run.a, run.gains

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backend: second derivatives (create_graph=True) were asked of 'fused', which "
                "computes first derivatives; expected backend='reference' for them"
            )
        x, y, a, ys, activities, gates, recurrent, checkpoints, *flat = ctx.saved_tensors
        kept = Kept(ctx.segment, x, y, a, ys, activities, gates, recurrent, checkpoints)
        _, _, *wanted = ctx.needs_input_grad
        return None, None, *run_backward(ctx.model, Folded.of(flat), kept, grads, wanted)
