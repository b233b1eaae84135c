"""The steps of a sequence, in place, with what the backward pass needs kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...dynamics import Model
from ..folding import Folded

__all__ = ["Run", "project_drive", "run_forward", "segment_length"]

# Elements of one state variable in a segment of steps: few enough for the cache.
SEGMENT_ELEMENTS = 1 << 17


class Run(NamedTuple):
    """Results, and what is kept of every step (of the last ones only, if nothing is kept)."""

    ys: Tensor
    """``y`` after every step, ``(T, B, n)``."""
    y: Tensor
    a: Tensor
    gains: Tensor
    """``b`` beside ``b0`` after the last step, ``(B, 2n)``."""
    activities: Tensor
    """``a`` after every step, ``(T, B, n)``."""
    gates: Tensor | None
    """``f``, ``(T, B, 2n)``; None where the gains are fixed."""
    recurrent: Tensor
    """``u``, ``(T, B, n)``."""
    checkpoints: Tensor
    """The gains before each segment, ``(segments, B, 2n)``."""


def segment_length(steps: int, y: Tensor) -> int:
    """Steps of a segment, for so many steps of circuits in the state ``y``."""
    return min(steps, max(1, SEGMENT_ELEMENTS // max(1, y.numel())))


def run_forward(
    model: Model, weights: Folded, x: Tensor, y: Tensor, a: Tensor, gains: Tensor, keep: bool
) -> Run:
    """Step through ``x`` ``(T, B, input_size)`` from ``y``, ``a`` ``(B, n)``, ``gains`` (B, 2n)."""
    steps, batch, n = x.shape[0], *y.shape
    segment = segment_length(steps, y)
    # Two slots at least: a step writes its result before it is done with the last one.
    span = steps if keep else max(2, segment)
    ys = y.new_empty(steps, batch, n)
    recurrent, activities = y.new_empty(span, batch, n), y.new_empty(span, batch, n)
    gates = None if weights.gates is None else y.new_empty(span, batch, 2 * n)
    checkpoints = y.new_empty(-(-steps // segment), batch, 2 * n)
    stepper = _Stepper(model, weights, y, a, gains)
    for start in range(0, steps, span):
        stop = min(start + span, steps)
        count = stop - start
        project_drive(model, weights, x[start:stop], recurrent[:count])
        if gates is not None and weights.gates is not None:
            _project(x[start:stop], weights.gates.weight_x, gates[:count])
        for first in range(0, count, segment):
            checkpoints[(start + first) // segment] = stepper.gains
            last = min(first + segment, count)
            stepper.run(
                ys[start + first : start + last],
                activities[first:last],
                recurrent[first:last],
                None if gates is None else gates[first:last],
            )
    return Run(
        ys,
        stepper.y.clone(),
        stepper.a.clone(),
        stepper.gains,
        activities,
        gates,
        recurrent,
        checkpoints,
    )


def project_drive(model: Model, weights: Folded, x: Tensor, out: Tensor) -> None:
    """Write ``z`` of all steps of ``x`` to ``out`` ``(T, B, n)``."""
    _project(x, weights.input_weight, out)
    if model.rectified:
        out.clamp_min_(0.0)


def _project(x: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.mm(x.flatten(0, 1), weight.mT, out=out.flatten(0, 1))


class _Stepper:
    """The state, stepped in place."""

    def __init__(self, model: Model, weights: Folded, y: Tensor, a: Tensor, gains: Tensor) -> None:
        self.model, self.weights = model, weights
        self.y, self.a, self.gains = y, a, gains.clone()
        n = y.shape[-1]
        self.b, self.b0 = self.gains[:, :n], self.gains[:, n:]
        self.work = [y.new_empty(y.shape) for _ in range(3)]
        # Products with a transposed matrix are slower, and these are needed at every step.
        recurrent, gates = weights.recurrent_weight, weights.gates
        self.recurrent = recurrent if weights.identity else recurrent.mT.contiguous()
        self.normalization = weights.normalization_weight.mT.contiguous()
        if gates is not None:
            self.gates_y = gates.weight_y.mT.contiguous()
            self.gates_a = gates.weight_a.mT.contiguous()

    def run(self, ys: Tensor, activities: Tensor, recurrent: Tensor, gates: Tensor | None) -> None:
        """Write the states after each step; ``recurrent`` holds ``z`` before, ``u`` after."""
        model, weights, y, a = self.model, self.weights, self.y, self.a
        b, b0, gains = self.b, self.b0, self.gains
        r, s, p = self.work
        product = torch.mul if weights.identity else torch.mm
        slices = [None] * len(ys) if gates is None else gates.unbind()
        for new_y, new_a, u, gate in zip(
            ys.unbind(), activities.unbind(), recurrent.unbind(), slices, strict=True
        ):
            torch.mul(b, u, out=new_y)
            active = torch.clamp_min(y, 0.0, out=r) if model.rectified else y
            product(y if model.after_weights else active, self.recurrent, out=u)
            if model.after_weights:
                u.clamp_min_(0.0)
            torch.clamp_min(a, 0.0, out=p)
            torch.sqrt(p, out=s)
            # Not (1 - k) y, where rounding 1 - k would change small k.
            new_y.add_(u).addcmul_(s, u, value=-1.0).addcmul_(y, weights.step_y, value=-1.0)
            new_y.add_(y)
            torch.mul(active, active, out=r)
            r.mul_(p)
            torch.mm(r, self.normalization, out=new_a)
            torch.mul(b0, b0, out=s)
            new_a.addcmul_(s, weights.semisaturation).addcmul_(a, weights.step_a, value=-1.0)
            new_a.add_(a)
            if gate is not None and weights.gates is not None:
                gate.addmm_(y, self.gates_y).addmm_(a, self.gates_a).sigmoid_()
                gains.lerp_(gate, weights.gates.step)
            y, a = new_y, new_a
        self.y, self.a = y, a
