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

from ...dynamics import Model, State
from ..base import SequenceWork
from ..by_hand import Forward, refuse_by_hand, run_by_hand
from ..folding import Folded
from .backward import Kept, run_backward
from .forward import run_forward, segment_length

__all__ = ["FusedBackend"]


class FusedBackend:
    """First derivatives of everything, in single or double precision, on any device."""

    name = "fused"

    def refusal(self, sequence: SequenceWork) -> str | None:
        dtype = sequence.x.dtype
        if dtype not in (torch.float32, torch.float64):
            return f"{dtype}, only float32 and float64"
        return refuse_by_hand(sequence)

    def run(self, sequence: SequenceWork) -> tuple[Tensor, State]:
        return run_by_hand(self, sequence)

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
        run = run_forward(model, weights, x, y, a, gains, keep)
        kept = (x, y, a, run.ys, run.activities, run.gates, run.recurrent, run.checkpoints)
        return Forward(run.ys, run.y, run.a, run.gains, kept)

    def backward(
        self,
        model: Model,
        weights: Folded,
        kept: tuple[Any, ...],
        grads: list[Tensor | None],
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        x, y, *_ = kept
        return run_backward(model, weights, Kept(segment_length(len(x), y), *kept), grads, wanted)
