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

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_organics._validation import is_transformed

from ..dynamics import Model, Parameters, State
from .base import Sequence

__all__ = ["FusedBackend"]

# Elements of one state variable in a segment of the backward pass: few enough for the cache.
SEGMENT_ELEMENTS = 1 << 18

_aten: Any = torch.ops.aten
_Optional = Tensor | None


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
        folded = fold(sequence.parameters)
        states = (sequence.state.y, sequence.state.a, sequence.state.b, sequence.state.b0)
        needed = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (sequence.x, *states, *folded)
        )
        ys, y, a, gains = _FusedSequence.apply(
            sequence.model, needed, sequence.x, *states[:2], torch.cat(states[2:], -1), *folded
        )
        return ys, State(y, a, *gains.chunk(2, -1))


class _Folded(NamedTuple):
    """The parameters of a step with ``k = dt / tau`` folded in, as differentiable tensors."""

    input_weight: Tensor
    """``k_y Wzx``, ``(n, input_size)``."""
    recurrent_weight: Tensor
    """``k_y Wr``, ``(n, n)``; ``k_y``, ``(n,)``, for the identity."""
    normalization_weight: Tensor
    """``k_a W``, ``(n, n)``."""
    keep_y: Tensor
    """``1 - k_y``, ``(n,)``."""
    keep_a: Tensor
    """``1 - k_a``, ``(n,)``."""
    semisaturation: Tensor
    """``k_a sigma^2``, ``(n,)``."""
    gain_weight_x: _Optional
    """``Wbx`` above ``Wb0x``, ``(2n, input_size)``; None where the gains are fixed."""
    gain_weight_y: _Optional
    """``Wby`` above ``Wb0y``, ``(2n, n)``."""
    gain_weight_a: _Optional
    """``Wba`` above ``Wb0a``, ``(2n, n)``."""
    step: _Optional
    """``k`` of both gains, ``(2n,)``."""


def fold(parameters: Parameters) -> _Folded:
    """The parameters as the fused step takes them."""
    k_y, k_a = parameters.step_y, parameters.step_a
    recurrent = parameters.recurrent_weight
    gains: list[_Optional] = [None] * 4
    if parameters.gain is not None and parameters.baseline_gain is not None:
        gains = [
            torch.cat(pair) for pair in zip(parameters.gain, parameters.baseline_gain, strict=True)
        ]
    return _Folded(
        k_y.unsqueeze(-1) * parameters.input_weight,
        k_y if recurrent is None else k_y.unsqueeze(-1) * recurrent,
        k_a.unsqueeze(-1) * parameters.normalization_weight,
        1.0 - k_y,
        1.0 - k_a,
        k_a * parameters.semisaturation.square(),
        *gains,
    )


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
        *folded: _Optional,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = _Folded(*folded)  # type: ignore[arg-type]
        run = _forward(model, weights, x, y, a, gains, keep=needed)
        ctx.model, ctx.segment = model, run.segment
        ctx.set_materialize_grads(False)
        if needed:
            ctx.save_for_backward(
                x, y, a, run.ys, run.activities, run.gates, run.recurrent, run.checkpoints, *folded
            )
        return run.ys, run.ys[-1].clone(), run.a, run.gains

    @staticmethod
    def backward(ctx: Any, *grads: _Optional) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backend: second derivatives (create_graph=True) were asked of 'fused', which "
                "computes first derivatives; expected backend='reference' for them"
            )
        x, y, a, ys, activities, gates, recurrent, checkpoints, *folded = ctx.saved_tensors
        weights = _Folded(*folded)
        kept = _Kept(ctx.segment, y, a, ys, activities, gates, recurrent, checkpoints)
        want_x = ctx.needs_input_grad[2]
        return (None, None, *_backward(ctx.model, weights, x, kept, grads, want_x))


class _Run(NamedTuple):
    """What the forward pass leaves behind; tensors over time are empty unless kept."""

    ys: Tensor
    a: Tensor
    gains: Tensor
    activities: Tensor
    """``a`` after every step, ``(T, B, n)``."""
    gates: _Optional
    """``f``, ``(T, B, 2n)``; None where the gains are fixed."""
    recurrent: Tensor
    """``u``, ``(T, B, n)``."""
    checkpoints: Tensor
    """The gains before each segment, ``(segments, B, 2n)``."""
    segment: int


def _forward(
    model: Model, weights: _Folded, x: Tensor, y: Tensor, a: Tensor, gains: Tensor, keep: bool
) -> _Run:
    steps, batch, n = x.shape[0], *y.shape
    segment = min(steps, max(1, SEGMENT_ELEMENTS // max(1, y.numel())))
    span = steps if keep else segment
    ys = y.new_empty(steps, batch, n)
    recurrent, activities = y.new_empty(span, batch, n), y.new_empty(span, batch, n)
    gates = None if weights.step is None else y.new_empty(span, batch, 2 * n)
    checkpoints = y.new_empty(-(-steps // segment), batch, 2 * n)
    gains = gains.clone()
    b, b0 = gains[:, :n], gains[:, n:]
    q, r, s, p, pool, c = (torch.empty_like(y) for _ in range(6))
    recurrent_t = weights.recurrent_weight.mT if weights.recurrent_weight.ndim == 2 else None
    normalization_t = weights.normalization_weight.mT
    for start in range(0, steps, span):
        stop = min(start + span, steps)
        _project(model, weights, x[start:stop], recurrent, gates)
        slices = zip(
            range(start, stop),
            ys[start:stop].unbind(),
            activities.unbind(),
            recurrent.unbind(),
            [None] * span if gates is None else gates.unbind(),
            strict=False,
        )
        for t, new_y, new_a, u, gate in slices:
            if t % segment == 0:
                checkpoints[t // segment] = gains
            torch.mul(b, u, out=q)
            active = torch.clamp_min(y, 0.0, out=r) if model.rectified else y
            source = y if model.after_weights else active
            if recurrent_t is None:
                torch.mul(source, weights.recurrent_weight, out=u)
            else:
                torch.mm(source, recurrent_t, out=u)
            if model.after_weights:
                u.clamp_min_(0.0)
            torch.clamp_min(a, 0.0, out=p)
            torch.sqrt(p, out=s)
            q.add_(u).addcmul_(s, u, value=-1.0)
            torch.mul(active, active, out=c)
            p.mul_(c)
            torch.mm(p, normalization_t, out=pool)
            torch.mul(b0, b0, out=c)
            pool.addcmul_(c, weights.semisaturation)
            if gate is not None:
                gate.addmm_(y, weights.gain_weight_y.mT).addmm_(a, weights.gain_weight_a.mT)
                gains.lerp_(gate.sigmoid_(), weights.step)
            torch.addcmul(q, y, weights.keep_y, out=new_y)
            torch.addcmul(pool, a, weights.keep_a, out=new_a)
            y, a = new_y, new_a
    return _Run(ys, a.clone(), gains, activities, gates, recurrent, checkpoints, segment)


def _project(model: Model, weights: _Folded, x: Tensor, drive: Tensor, gates: _Optional) -> None:
    """Write the input's part of all steps: ``z`` to ``drive``, that of ``f`` to ``gates``."""
    rows, count = x.flatten(0, 1), x.shape[0]
    z = torch.mm(rows, weights.input_weight.mT, out=drive[:count].flatten(0, 1))
    if model.rectified:
        z.clamp_min_(0.0)
    if gates is not None:
        torch.mm(rows, weights.gain_weight_x.mT, out=gates[:count].flatten(0, 1))


class _Kept(NamedTuple):
    """What the forward pass kept for the backward pass; see :class:`_Run`."""

    segment: int
    y: Tensor
    a: Tensor
    ys: Tensor
    activities: Tensor
    gates: _Optional
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


def _backward(
    model: Model,
    weights: _Folded,
    x: Tensor,
    kept: _Kept,
    grads: tuple[_Optional, ...],
    want_x: bool,
) -> tuple[_Optional, ...]:
    """Gradients of ``x``, ``y``, ``a``, ``gains`` and the folded parameters, in that order."""
    grad_ys, *grad_last = grads
    steps, batch, n = kept.ys.shape
    sweep = _Sweep(model, weights, kept.segment, batch, n, x)
    sweep.start(grad_last)
    grad_x = torch.empty_like(x) if want_x else None
    bounds = [*range(0, steps, kept.segment), steps]
    for index, (start, stop) in reversed(list(enumerate(pairwise(bounds)))):
        y, a = kept.before(start, stop)
        sweep.run(
            x[start:stop],
            y,
            a,
            None if kept.gates is None else kept.gates[start:stop],
            kept.recurrent[start:stop],
            kept.checkpoints[index],
            None if grad_ys is None else grad_ys[start:stop],
            None if grad_x is None else grad_x[start:stop],
        )
    return (grad_x, *sweep.adjoints(), *sweep.gradients())


class _Sweep:
    """The adjoint's way back through the sequence, one segment of steps at a time."""

    def __init__(
        self, model: Model, weights: _Folded, segment: int, batch: int, n: int, x: Tensor
    ) -> None:
        self.model, self.weights, self.batch, self.n = model, weights, batch, n
        dynamic = weights.step is not None

        def empty(rows: int, columns: int) -> Tensor:
            return x.new_empty(rows, batch, columns)

        # Adjoints before (index i) and after (index i + 1) the i-th step of the segment.
        self.adjoint_y, self.adjoint_a = empty(segment + 1, n), empty(segment + 1, n)
        self.adjoint_gains = empty(segment + 1, 2 * n)
        self.gains = empty(segment + 1 if dynamic else 1, 2 * n)
        self.grad_recurrent = empty(segment, n)
        self.grad_gates = empty(segment if dynamic else 0, 2 * n)
        self.work = [empty(segment, n) for _ in range(8)]
        self.carry: tuple[Tensor, Tensor, Tensor] = (
            x.new_zeros(batch, n),
            x.new_zeros(batch, n),
            x.new_zeros(batch, 2 * n),
        )
        self.totals = _Folded(*(None if w is None else torch.zeros_like(w) for w in weights))
        self.keep_gains = 1.0 - weights.step if dynamic else None
        # The factor k of a gate's adjoint, folded into the weights that propagate it.
        self.scaled = [
            None if w is None else weights.step.unsqueeze(-1) * w
            for w in (weights.gain_weight_x, weights.gain_weight_y, weights.gain_weight_a)
        ]

    def start(self, grads: list[_Optional]) -> None:
        """Add the gradients of the last state, ``y``, ``a`` and both gains."""
        for total, grad in zip(self.carry, grads, strict=True):
            if grad is not None:
                total += grad

    def adjoints(self) -> tuple[Tensor, ...]:
        """Gradients of the initial ``y``, ``a`` and gains, after the last segment."""
        return tuple(part.clone() for part in self.carry)

    def gradients(self) -> _Folded:
        """Gradients of the folded parameters, after the last segment."""
        step = self.weights.step
        if step is None:
            return self.totals
        for total in (
            self.totals.gain_weight_x,
            self.totals.gain_weight_y,
            self.totals.gain_weight_a,
        ):
            total *= step.unsqueeze(-1)
        return self.totals

    def run(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gates: _Optional,
        u: Tensor,
        checkpoint: Tensor,
        grad_ys: _Optional,
        grad_x: _Optional,
    ) -> None:
        """Go back through one segment of ``m`` steps, whose states before each step are given."""
        m, n, model, weights = x.shape[0], self.n, self.model, self.weights
        r, s, excitation, pool, inhibition, rates, z, level = (part[:m] for part in self.work)
        if model.rectified:
            torch.clamp_min(y, 0.0, out=r)
        else:
            r.copy_(y)
        torch.clamp_min(a, 0.0, out=level)
        torch.sqrt(level, out=s)
        torch.mul(r, level, out=excitation)
        torch.mul(r, r, out=pool)
        torch.mul(pool, level, out=rates)
        _aten.threshold_backward.grad_input(pool, a, 0.0, grad_input=pool)
        # da+/da is 0 where a <= 0: dividing by infinity says so.
        _aten.threshold.out(s, 0.0, torch.inf, out=inhibition)
        torch.div(u, inhibition, out=inhibition)
        rows = x.flatten(0, 1)
        torch.mm(rows, weights.input_weight.mT, out=z.flatten(0, 1))
        if model.rectified:
            z.clamp_min_(0.0)

        gains = self.gains
        gains[0] = checkpoint
        if gates is None:
            gains = gains.expand(m + 1, -1, -1)
        else:
            slots = gains.unbind()
            for i, gate in enumerate(gates.unbind()):
                torch.lerp(slots[i], gate, weights.step, out=slots[i + 1])
        b, b0 = gains[:m, :, :n], gains[:m, :, n:]
        baseline = torch.mul(b0, weights.semisaturation, out=level)

        self._steps(m, gates, u, grad_ys, r, s, excitation, pool, inhibition, z, baseline)

        after_y, after_a = self.adjoint_y[1 : m + 1], self.adjoint_a[1 : m + 1]
        total, spare = self.totals, s
        source = y if model.after_weights else r
        if weights.recurrent_weight.ndim == 2:
            _add_product(total.recurrent_weight, self.grad_recurrent[:m], source)
        else:
            _add_sum(total.recurrent_weight, self.grad_recurrent[:m], source, spare)
        _add_product(total.normalization_weight, after_a, rates)
        _add_sum(total.keep_y, after_y, y, spare)
        _add_sum(total.keep_a, after_a, a, spare)
        _add_sum(total.semisaturation, torch.mul(b0, b0, out=rates), after_a, spare)
        grad_drive = torch.mul(after_y, b, out=spare)
        if model.rectified:
            _aten.threshold_backward.grad_input(grad_drive, z, 0.0, grad_input=grad_drive)
        _add_product(total.input_weight, grad_drive, x)
        if grad_x is not None:
            torch.mm(grad_drive.flatten(0, 1), weights.input_weight, out=grad_x.flatten(0, 1))
        if gates is not None:
            grad_gates = self.grad_gates[:m]
            _add_product(total.gain_weight_x, grad_gates, x)
            _add_product(total.gain_weight_y, grad_gates, y)
            _add_product(total.gain_weight_a, grad_gates, a)
            if grad_x is not None:
                grad_x.flatten(0, 1).addmm_(grad_gates.flatten(0, 1), self.scaled[0])
            difference = torch.sub(gates, gains[:m], out=gains[:m])
            _add_sum(total.step, difference, self.adjoint_gains[1 : m + 1], difference)
        self.carry = (self.adjoint_y[0], self.adjoint_a[0], self.adjoint_gains[0])

    def _steps(
        self,
        m: int,
        gates: _Optional,
        u: Tensor,
        grad_ys: _Optional,
        r: Tensor,
        s: Tensor,
        excitation: Tensor,
        pool: Tensor,
        inhibition: Tensor,
        z: Tensor,
        baseline: Tensor,
    ) -> None:
        """The recursion itself: adjoints of all states of the segment, newest first."""
        model, weights, n = self.model, self.weights, self.n
        recurrent = weights.recurrent_weight
        ays, aas, ags = (
            part[: m + 1].unbind() for part in (self.adjoint_y, self.adjoint_a, self.adjoint_gains)
        )
        for slot, value in zip((ays[m], aas[m], ags[m]), self.carry, strict=True):
            slot.copy_(value)
        from_pool, from_recurrent = torch.empty_like(ays[0]), torch.empty_like(ays[0])
        steps = list(
            zip(
                range(m),
                u.unbind(),
                r.unbind(),
                s.unbind(),
                excitation.unbind(),
                pool.unbind(),
                inhibition.unbind(),
                z.unbind(),
                baseline.unbind(),
                self.grad_recurrent[:m].unbind(),
                [None] * m if grad_ys is None else grad_ys.unbind(),
                strict=True,
            )
        )
        grad_gates = self.grad_gates[:m].unbind()
        gate_slices = () if gates is None else gates.unbind()
        for i, u_i, r_i, s_i, e_i, p_i, h_i, z_i, c_i, grad_u, grad_y in reversed(steps):
            v, w, h = ays[i + 1], aas[i + 1], ags[i + 1]
            new_y, new_a, new_gains = ays[i], aas[i], ags[i]
            if grad_y is not None:
                v += grad_y
            torch.addcmul(v, v, s_i, value=-1.0, out=grad_u)
            if model.after_weights:
                _aten.threshold_backward.grad_input(grad_u, u_i, 0.0, grad_input=grad_u)
            torch.mm(w, weights.normalization_weight, out=from_pool)
            if recurrent.ndim == 2:
                torch.mm(grad_u, recurrent, out=from_recurrent)
            else:
                torch.mul(grad_u, recurrent, out=from_recurrent)
            from_recurrent.addcmul_(e_i, from_pool, value=2.0)
            if model.rectified and not model.after_weights:
                _aten.threshold_backward.grad_input(
                    from_recurrent, r_i, 0.0, grad_input=from_recurrent
                )
            torch.addcmul(from_recurrent, v, weights.keep_y, out=new_y)
            torch.mul(w, weights.keep_a, out=new_a)
            new_a.addcmul_(p_i, from_pool).addcmul_(h_i, v, value=-0.5)
            if self.keep_gains is None:
                new_gains.copy_(h)
            else:
                grad_gate = grad_gates[i]
                _aten.sigmoid_backward.grad_input(h, gate_slices[i], grad_input=grad_gate)
                new_y.addmm_(grad_gate, self.scaled[1])
                new_a.addmm_(grad_gate, self.scaled[2])
                torch.mul(h, self.keep_gains, out=new_gains)
            new_gains[:, :n].addcmul_(z_i, v)
            new_gains[:, n:].addcmul_(c_i, w, value=2.0)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += sum over steps and batch of left right^T``, one product."""
    total.addmm_(left.flatten(0, 1).mT, right.flatten(0, 1))


def _add_sum(total: Tensor, left: Tensor, right: Tensor, spare: Tensor) -> None:
    """``total += sum over steps and batch of left * right``, with ``spare`` to multiply in."""
    total += torch.mul(left, right, out=spare).flatten(0, 1).sum(0)
