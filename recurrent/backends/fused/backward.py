"""The adjoint's way back through a sequence, one segment of steps at a time."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...dynamics import Model
from ..folding import Folded, Gates
from .forward import project_drive

__all__ = ["Kept", "run_backward"]

_aten: Any = torch.ops.aten
# Each writes into its last argument: gradient where the value is positive; through a sigmoid.
_where_positive = _aten.threshold_backward.grad_input
_through_sigmoid = _aten.sigmoid_backward.grad_input


class Kept(NamedTuple):
    """The input and what the forward pass kept; see :class:`.forward.Run`."""

    segment: int
    x: Tensor
    y: Tensor
    a: Tensor
    ys: Tensor
    activities: Tensor
    gates: Tensor | None
    recurrent: Tensor
    checkpoints: Tensor

    def before(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """``y`` and ``a`` before the steps ``start`` to ``stop - 1``."""
        if start > 0:
            return self.ys[start - 1 : stop - 1], self.activities[start - 1 : stop - 1]
        return (
            torch.cat([self.y.unsqueeze(0), self.ys[: stop - 1]]),
            torch.cat([self.a.unsqueeze(0), self.activities[: stop - 1]]),
        )


def run_backward(
    model: Model,
    weights: Folded,
    kept: Kept,
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x``, the initial ``y``, ``a`` and gains, and the folded parameters."""
    grad_ys, *grad_last = grads
    steps = kept.ys.shape[0]
    sweep = _Sweep(model, weights, kept, wanted)
    sweep.start(grad_last)
    # Not like x: what is written below are views of it.
    grad_x = kept.x.new_empty(kept.x.shape) if wanted[0] else None
    bounds = [*range(0, steps, kept.segment), steps]
    for index, (start, stop) in reversed(list(enumerate(pairwise(bounds)))):
        sweep.run(
            _Segment(
                kept.x[start:stop],
                *kept.before(start, stop),
                None if kept.gates is None else kept.gates[start:stop],
                kept.recurrent[start:stop],
                kept.checkpoints[index],
                None if grad_ys is None else grad_ys[start:stop],
                None if grad_x is None else grad_x[start:stop],
            )
        )
    return grad_x, *sweep.adjoints(), *sweep.gradients()


class _Segment(NamedTuple):
    """``m`` steps: the states before them, what was kept of them, and their gradients."""

    x: Tensor
    y: Tensor
    a: Tensor
    gates: Tensor | None
    u: Tensor
    gains: Tensor
    """Before the first step, ``(B, 2n)``."""
    grad_ys: Tensor | None
    grad_x: Tensor | None
    """To be written, if wanted."""


class _Buffer:
    """A tensor ``(slots, B, columns)`` and its slots, cut once for all segments."""

    def __init__(self, like: Tensor, slots: int, columns: int) -> None:
        self.all = like.new_empty(slots, like.shape[0], columns)
        self.slots = self.all.unbind()


class _Sweep:
    """Buffers for one segment, the adjoint at its start, and the gradients so far."""

    def __init__(self, model: Model, weights: Folded, kept: Kept, wanted: Sequence[bool]) -> None:
        self.model, self.weights = model, weights
        self.learns_time_constants = any((*wanted[7:10], *wanted[13:]))
        segment, like = kept.segment, kept.y
        n = like.shape[-1]
        dynamic = weights.gates is not None
        # Adjoints before (slot i) and after (slot i + 1) the i-th step of the segment.
        self.adjoint_y = _Buffer(like, segment + 1, n)
        self.adjoint_a = _Buffer(like, segment + 1, n)
        self.adjoint_gains = _Buffer(like, segment + 1, 2 * n)
        self.adjoint_b = self.adjoint_gains.all[..., :n].unbind()
        self.adjoint_b0 = self.adjoint_gains.all[..., n:].unbind()
        self.gains = _Buffer(like, segment + 1 if dynamic else 1, 2 * n)
        self.grad_u = _Buffer(like, segment, n)
        self.grad_gates = _Buffer(like, segment if dynamic else 0, 2 * n)
        self.active, self.root, self.excitation, self.pool = (
            _Buffer(like, segment, n) for _ in range(4)
        )
        self.inhibition, self.drive, self.baseline = (_Buffer(like, segment, n) for _ in range(3))
        self.rates = _Buffer(like, segment, n)
        self.carry = tuple(like.new_zeros(like.shape[0], width) for width in (n, n, 2 * n))
        self.totals = Folded.of([torch.zeros_like(tensor) for tensor in weights.flat()])
        self.scaled: Gates | None = None
        if weights.gates is not None:
            # The factor k of a gate's adjoint, folded into the weights that propagate it.
            column = weights.gates.step.unsqueeze(-1)
            x, y, a = (column * weight for weight in weights.gates[:3])
            self.scaled = Gates(x, y, a, weights.gates.step)

    def start(self, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of the last state, ``y``, ``a`` and the gains."""
        for total, grad in zip(self.carry, grads, strict=True):
            if grad is not None:
                total += grad

    def adjoints(self) -> tuple[Tensor, ...]:
        """Gradients of the initial ``y``, ``a`` and gains, after the last segment."""
        return tuple(part.clone() for part in self.carry)

    def gradients(self) -> tuple[Tensor, ...]:
        """Gradients of the folded parameters, after the last segment."""
        # What was summed are the gradients of 1 - k_y and 1 - k_a.
        self.totals.step_y.neg_()
        self.totals.step_a.neg_()
        if self.weights.gates is not None and self.totals.gates is not None:
            for total in self.totals.gates[:3]:
                total *= self.weights.gates.step.unsqueeze(-1)
        return self.totals.flat()

    def run(self, segment: _Segment) -> None:
        """Go back through one segment."""
        self._recompute(segment)
        self._step_back(segment)
        self._add_gradients(segment)
        self.carry = (
            self.adjoint_y.slots[0],
            self.adjoint_a.slots[0],
            self.adjoint_gains.slots[0],
        )

    def _recompute(self, segment: _Segment) -> None:
        """All factors of the recursion that do not depend on the adjoints."""
        m, n = segment.y.shape[0], segment.y.shape[-1]
        r, s, pool = self.active.all[:m], self.root.all[:m], self.pool.all[:m]
        positive = torch.clamp_min(segment.a, 0.0, out=self.baseline.all[:m])
        torch.sqrt(positive, out=s)
        if self.model.rectified:
            torch.clamp_min(segment.y, 0.0, out=r)
        else:
            r.copy_(segment.y)
        torch.mul(r, positive, out=self.excitation.all[:m])
        torch.mul(r, r, out=pool)
        torch.mul(pool, positive, out=self.rates.all[:m])
        _where_positive(pool, segment.a, 0.0, grad_input=pool)
        inhibition = self.inhibition.all[:m]
        # da+/da is 0 where a <= 0: dividing by infinity says so.
        _aten.threshold.out(s, 0.0, torch.inf, out=inhibition)
        torch.div(segment.u, inhibition, out=inhibition)
        project_drive(self.model, self.weights, segment.x, self.drive.all[:m])
        self.gains.slots[0].copy_(segment.gains)
        if segment.gates is not None and self.weights.gates is not None:
            for pair, gate in zip(pairwise(self.gains.slots), segment.gates.unbind(), strict=False):
                torch.lerp(pair[0], gate, self.weights.gates.step, out=pair[1])
        b0 = self._gains_before(m)[..., n:]
        torch.mul(b0, self.weights.semisaturation, out=self.baseline.all[:m])

    def _gains_before(self, m: int) -> Tensor:
        """The gains before each step, ``(m, B, 2n)``."""
        gains = self.gains.all
        return gains.expand(m, -1, -1) if self.weights.gates is None else gains[:m]

    def _step_back(self, segment: _Segment) -> None:
        """The recursion: adjoints of all states of the segment, newest first."""
        model, weights, scaled = self.model, self.weights, self.scaled
        m = segment.y.shape[0]
        normalization, recurrent = weights.normalization_weight, weights.recurrent_weight
        product = torch.mul if weights.identity else torch.mm
        adjoints = (self.adjoint_y.slots, self.adjoint_a.slots, self.adjoint_gains.slots)
        for slots, value in zip(adjoints, self.carry, strict=True):
            slots[m].copy_(value)
        v, w, h = (slots[m] for slots in adjoints)
        from_pool = torch.empty_like(v)
        gates = () if segment.gates is None else segment.gates.unbind()
        us = segment.u.unbind() if model.after_weights else ()
        grad_ys = () if segment.grad_ys is None else segment.grad_ys.unbind()
        rectify = model.rectified and not model.after_weights
        for i in reversed(range(m)):
            new_y, new_a, new_gains = (slots[i] for slots in adjoints)
            grad_u = self.grad_u.slots[i]
            if grad_ys:
                v += grad_ys[i]
            torch.addcmul(v, v, self.root.slots[i], value=-1.0, out=grad_u)
            if us:
                _where_positive(grad_u, us[i], 0.0, grad_input=grad_u)
            torch.mm(w, normalization, out=from_pool)
            product(grad_u, recurrent, out=new_y)
            new_y.addcmul_(self.excitation.slots[i], from_pool, value=2.0)
            if rectify:
                _where_positive(new_y, self.active.slots[i], 0.0, grad_input=new_y)
            torch.mul(self.pool.slots[i], from_pool, out=new_a)
            new_a.addcmul_(self.inhibition.slots[i], v, value=-0.5)
            if scaled is None:
                new_gains.copy_(h)
            else:
                grad_gate = self.grad_gates.slots[i]
                _through_sigmoid(h, gates[i], grad_input=grad_gate)
                new_y.addmm_(grad_gate, scaled.weight_y)
                new_a.addmm_(grad_gate, scaled.weight_a)
                torch.addcmul(h, h, scaled.step, value=-1.0, out=new_gains)
            # The small parts first, and not (1 - k) v, where rounding 1 - k would change small k.
            new_y.addcmul_(v, weights.step_y, value=-1.0).add_(v)
            new_a.addcmul_(w, weights.step_a, value=-1.0).add_(w)
            self.adjoint_b[i].addcmul_(self.drive.slots[i], v)
            self.adjoint_b0[i].addcmul_(self.baseline.slots[i], w, value=2.0)
            v, w, h = new_y, new_a, new_gains

    def _add_gradients(self, segment: _Segment) -> None:
        """The segment's part of all gradients, each one product over its steps and batch."""
        m, n = segment.y.shape[0], segment.y.shape[-1]
        weights, total = self.weights, self.totals
        v, w = self.adjoint_y.all[1 : m + 1], self.adjoint_a.all[1 : m + 1]
        spare, gains = self.root.all[:m], self._gains_before(m)
        b, b0 = gains[..., :n], gains[..., n:]
        grad_u, source = self.grad_u.all[:m], self.active.all[:m]
        if self.model.after_weights:
            source = segment.y
        if weights.identity:
            _add_sum(total.recurrent_weight, grad_u, source, spare)
        else:
            _add_product(total.recurrent_weight, grad_u, source)
        _add_product(total.normalization_weight, w, self.rates.all[:m])
        if self.learns_time_constants:
            _add_sum(total.step_y, v, segment.y, spare)
            _add_sum(total.step_a, w, segment.a, spare)
            _add_sum(total.semisaturation, torch.mul(b0, b0, out=self.rates.all[:m]), w, spare)
        grad_drive = torch.mul(v, b, out=spare)
        if self.model.rectified:
            _where_positive(grad_drive, self.drive.all[:m], 0.0, grad_input=grad_drive)
        _add_product(total.input_weight, grad_drive, segment.x)
        grad_x = None if segment.grad_x is None else segment.grad_x.flatten(0, 1)
        if grad_x is not None:
            torch.mm(grad_drive.flatten(0, 1), weights.input_weight, out=grad_x)
        if segment.gates is None or total.gates is None or self.scaled is None:
            return
        grad_gates = self.grad_gates.all[:m]
        _add_product(total.gates.weight_x, grad_gates, segment.x)
        _add_product(total.gates.weight_y, grad_gates, segment.y)
        _add_product(total.gates.weight_a, grad_gates, segment.a)
        if grad_x is not None:
            grad_x.addmm_(grad_gates.flatten(0, 1), self.scaled.weight_x)
        if self.learns_time_constants:
            difference = torch.sub(segment.gates, gains, out=gains)
            _add_sum(total.gates.step, difference, self.adjoint_gains.all[1 : m + 1], difference)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += sum over steps and batch of left right^T``, one product."""
    total.addmm_(left.flatten(0, 1).mT, right.flatten(0, 1))


def _add_sum(total: Tensor, left: Tensor, right: Tensor, spare: Tensor) -> None:
    """``total += sum over steps and batch of left * right``, with ``spare`` to multiply in."""
    total += torch.mul(left, right, out=spare).flatten(0, 1).sum(0)
