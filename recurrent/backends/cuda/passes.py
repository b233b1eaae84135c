"""The kernels' ways forward and back, as the autograd function of :mod:`..by_hand` takes them."""

from typing import Any

import torch
from torch import Tensor

from ...dynamics import Model
from ..by_hand import Forward
from ..folding import Folded
from .backward import Kept, run_backward
from .forward import run_forward

__all__ = ["CudaPasses"]


class CudaPasses:
    """One launch forward, and one back."""

    name = "cuda"

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
        kept = (x, run.ys, run.activities, run.gates, run.recurrent, run.gains)
        return Forward(run.ys[-len(x) :], run.y, run.a, run.last_gains, kept)

    def backward(
        self,
        model: Model,
        weights: Folded,
        kept: tuple[Any, ...],
        grads: list[Tensor | None],
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        x, ys, activities, *rest = kept
        kept = Kept(x, ys[:-1], activities[:-1], *rest)
        with torch.cuda.device_of(x):
            return run_backward(model, weights, kept, grads, wanted)
