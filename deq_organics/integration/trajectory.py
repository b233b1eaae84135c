"""The loop that steps a batch of samples through time, each at its own pace."""

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import is_transformed, physical
from .method import Method, Step, VectorField, is_autonomous
from .pieces import Pieces
from .sampling import ListedSamples, MaskedSamples, Passage, Samples

__all__ = ["Outcome", "Run", "StepControl", "has_blown_up", "integrate"]

_RUNNING = -1
_SPREAD = 2.0**49 + 1.0
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_EPSILON = 2.0**-52
# A step that would end this part of itself before a time to stop at goes there.
_SNAP = 1e-9
# What has grown by this factor when its steps vanish has diverged.
_BLOWN_UP = 1e6


class Outcome(IntEnum):
    """How the integration of a sample ended."""

    FINISHED = 0
    DIVERGED = 1
    STALLED = 2
    TOO_MANY_STEPS = 3


class StepControl(NamedTuple):
    """How long the steps are."""

    rtol: float
    atol: Tensor
    """In units of ``scale``, ``(B, k)``: a step's error is at most ``atol + rtol |x|``."""
    scale: Tensor
    """Positive magnitudes of the components, ``(B, k)``."""
    first_step: float | Tensor | None = None
    """Of all samples, or of each, ``(B,)``, float64; None finds one."""
    max_step: float = math.inf
    max_steps: int = 100_000
    step_size: float | None = None
    """Of methods without an error estimate; None steps from one time of the grid to the next."""

    def take(self, index: Tensor) -> "StepControl":
        """The control of the samples at the indices ``(B',)``."""
        first = self.first_step
        return self._replace(
            atol=self.atol[index],
            scale=self.scale[index],
            first_step=first[index] if isinstance(first, Tensor) else first,
        )


class Run(NamedTuple):
    """States of a batch at the times of the grid, and how each sample's integration ended."""

    states: Tensor
    """``(T, B, k)``; NaN from where a sample did not get."""
    outcome: Tensor
    """Each sample's :class:`Outcome` as an integer, ``(B,)``."""
    time: Tensor
    """The last time that each sample reached, ``(B,)``, float64."""
    next_length: Tensor
    """How long each sample's next step would have been, ``(B,)``, float64."""
    end: Tensor
    """From where each sample goes on, ``(B, k)``: as at the last of its times, and where its field
    jumps at that time, with the derivative by when it does."""


class _Front(NamedTuple):
    """Where the samples that are followed are, each tensor with one row a sample."""

    rows: Tensor
    """Their places in the batch."""
    state: Tensor
    slope: Tensor
    time: Tensor
    """Since the first time of the grid."""
    h: Tensor
    seen: Tensor
    """How many times of the grid are behind them."""
    piece: Tensor
    """In which of their pieces they are."""
    outcome: Tensor

    @property
    def running(self) -> Tensor:
        return self.outcome == _RUNNING

    def take(self, index: Tensor) -> "_Front":
        return _Front(*(part[index] for part in self))


def integrate(
    field: VectorField,
    start: Tensor,
    grid: Tensor,
    method: Method,
    control: StepControl,
    pieces: Pieces | None = None,
) -> Run:
    """Solve ``dx/dt = f(t, x)`` from the states ``start`` ``(B, k)`` at the first of the times.

    Each sample has its own steps, as many as its own error asks for, and its result does not
    depend on the others; one that fails leaves the batch. What a sample's step sizes are is not
    differentiated, all else is.

    Args:
        field: The differential equation.
        start: States ``(B, k)``.
        grid: At least two increasing times ``(T,)``.
        method: How to step.
        control: How long the steps are.
        pieces: Of each sample, between the times at which the field may jump: steps end there.
    """
    exact, origin = grid.double(), grid.detach()[0].double()
    elapsed = exact - (exact[:1] if is_autonomous(field) else origin)
    times = elapsed.detach()
    size = start.shape[0]
    time = torch.zeros(size, dtype=torch.float64, device=start.device)
    if pieces is None:
        pieces = Pieces(time.new_empty((1, 0)), origin, exact[-1])
    piece = pieces.at(origin + time)
    inside = pieces.confine(field, piece)
    slope, begin = inside(origin + time, start), start
    if not is_autonomous(field) and _is_differentiated(grid):
        # From the first time to its own number: this is how the start depends on that time.
        first = exact[0] + time
        begin = method.step(inside, first, start, inside(first, start), origin - first).end
        slope = inside(origin + time, begin)
    transformed = is_transformed(slope) or is_transformed(times)
    samples: Samples = (MaskedSamples if transformed else ListedSamples)(method, start, elapsed)
    rows = torch.arange(size, device=start.device)
    known = torch.isfinite(slope.detach()).all(-1)
    front = _Front(
        rows,
        begin,
        slope,
        time,
        _first_step(inside, origin, begin, slope, times[-1] + time, method, control),
        torch.ones_like(rows),
        piece,
        torch.where(known, _RUNNING, Outcome.DIVERGED),
    )
    outcome, reached, planned, attempts = front.outcome, front.time, front.h, 0
    end = front.state
    while True:
        running = physical(front.running)
        left = int(running.sum())
        # Samples that have arrived stand still until they are half of those followed; failed ones
        # go at once, for their field may not be finite.
        if left == 0 or (
            not transformed and (2 * left <= running.numel() or _any_failed(front.outcome))
        ):
            outcome = outcome.index_copy(0, front.rows, front.outcome)
            reached = reached.index_copy(0, front.rows, front.time)
            planned = planned.index_copy(0, front.rows, front.h)
            end = end.index_copy(0, front.rows, front.state)
            if left == 0:
                break
            index = running.nonzero().squeeze(-1)
            if left < running.numel():
                front, field, control = front.take(index), field.select(index), control.take(index)
                pieces = pieces.take(index)
        if attempts == control.max_steps and method.error_order is not None:
            late = torch.where(front.running, Outcome.TOO_MANY_STEPS, front.outcome)
            front = front._replace(outcome=late)
            continue
        attempts += 1
        front = _advance(field, pieces, origin, times, front, method, control, samples)
    return Run(samples.collect(), outcome, origin + reached, planned, end)


def _any_failed(outcome: Tensor) -> bool:
    return bool((outcome > Outcome.FINISHED).any())


def _is_differentiated(tensor: Tensor) -> bool:
    dual = torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
    return tensor.requires_grad or is_transformed(tensor) or dual


def _advance(
    field: VectorField,
    pieces: Pieces,
    origin: Tensor,
    times: Tensor,
    front: _Front,
    method: Method,
    control: StepControl,
    samples: Samples,
) -> _Front:
    """One trial step of each running sample."""
    every = not method.interpolates or (method.error_order is None and control.step_size is None)
    stop = times[front.seen.clamp(max=times.numel() - 1)] if every else times[-1]
    end = pieces.end(front.piece) if pieces.broken else None
    if end is not None:
        stop = torch.minimum(stop, end.detach() - origin)
    inside = pieces.confine(field, front.piece)
    arrives = front.h * (1.0 + _SNAP) >= stop - front.time
    length = torch.where(arrives, stop - front.time, front.h)
    length = torch.where(front.running, length, 0.0)
    step = method.step(inside, origin + front.time, front.state, front.slope, length)
    finite = _is_finite(step)
    if not physical(finite).all():
        # The derivative of what is not finite would poison weights that the samples share.
        length = torch.where(finite, length, 0.0)
        step = method.step(inside, origin + front.time, front.state, front.slope, length)
    accepted, h = finite & front.running, front.h
    hopeless = ~accepted
    if method.error_order is not None:
        ratio = _error_ratio(step, control)
        accepted = accepted & (ratio <= 1.0)
        h = _next_length(method.error_order, control, ratio, finite, accepted & arrives, length, h)
        # That of a sample which stands still is asked for in the end.
        h = torch.where(front.running, h, front.h)
        # Accepted or not: by such steps time does not advance.
        hopeless = h <= _EPSILON * torch.maximum(front.time, _EPSILON * times[-1])
    after = torch.where(accepted, torch.where(arrives, stop, front.time + length), front.time)
    ahead = torch.where(accepted, torch.searchsorted(times, after, right=True), front.seen)
    samples.record(
        Passage(step, accepted, front.rows, front.time, after, length, front.seen, ahead)
    )

    lost = ~finite | has_blown_up(front.state, control)
    failure = torch.where(lost, Outcome.DIVERGED, Outcome.STALLED)
    outcome = torch.where(front.running & hopeless, failure, front.outcome)
    outcome = torch.where(accepted & (after >= times[-1]), Outcome.FINISHED, outcome)
    moved = accepted.unsqueeze(-1)
    state = torch.where(moved, step.end, front.state)
    slope = torch.where(moved, step.slope, front.slope)
    piece = front.piece
    if end is not None:
        passes = accepted & (after >= end.detach() - origin)
        piece = piece + passes
        if physical(passes).any():
            beyond, now = pieces.confine(field, piece), origin + after
            if _is_differentiated(pieces.edges):
                # On to the break and back again: this is how the state depends on when it is.
                shift = torch.where(passes, end - end.detach(), 0.0)
                state = method.step(inside, now, state, slope, shift).end
                back = beyond(now + shift, state)
                state = method.step(beyond, now + shift, state, back, -shift).end
            slope = torch.where(passes.unsqueeze(-1), beyond(now, state), slope)
    return _Front(front.rows, state, slope, after, h, ahead, piece, outcome)


def _next_length(
    error_order: int,
    control: StepControl,
    ratio: Tensor,
    finite: Tensor,
    arrived: Tensor,
    length: Tensor,
    planned: Tensor,
) -> Tensor:
    """How long to step after a trial of a length whose error is ``ratio`` times the tolerance."""
    factor = (_SAFETY * ratio.pow(-1.0 / error_order)).clamp(_SHRINK, _GROW)
    h = torch.where(finite, length * factor, _SHRINK * planned)
    # A step cut short says nothing against the length that had been planned.
    h = torch.where(arrived, torch.maximum(h, planned), h)
    return _round(h).clamp(max=control.max_step)


def has_blown_up(state: Tensor, control: StepControl) -> Tensor:
    """Whether states ``(B, k)`` are far beyond the size that the control was made for."""
    return state.detach().abs().amax(-1) > _BLOWN_UP * control.scale.amax(-1)


def _round(h: Tensor) -> Tensor:
    """To four significant bits, by operations that are exact wherever they run.

    Where stability limits the steps of an explicit method their sizes amplify rounding errors,
    which depend on the batch (on the kernels that it takes): rounded ones do not.
    """
    spread = h * _SPREAD
    return spread - (spread - h)


def _is_finite(step: Step) -> Tensor:
    parts = [step.end, step.slope] if step.error is None else [step.end, step.slope, step.error]
    return torch.stack([torch.isfinite(part.detach()).all(-1) for part in parts]).all(0)


def _error_ratio(step: Step, control: StepControl) -> Tensor:
    """The largest error of any component in units of its tolerance, float64 ``(B,)``.

    The largest, since a mean would grow with what does not move.
    """
    assert step.error is not None
    error = step.error.detach().abs() / control.scale
    larger = torch.maximum(step.start.detach().abs(), step.end.detach().abs())
    ratio = error / (control.atol + control.rtol * (larger / control.scale))
    return torch.where(error == 0, 0.0, ratio).amax(-1).double()


def _first_step(
    field: VectorField,
    origin: Tensor,
    state: Tensor,
    slope: Tensor,
    span: Tensor,
    method: Method,
    control: StepControl,
) -> Tensor:
    """Length of each sample's first trial step, ``(B,)``, in float64.

    From the sizes of ``f`` and of its change along one step of Euler's, each in units of the
    tolerance, as in Hairer, Norsett, Wanner, II.4, but free of the unit of time.
    """
    if method.error_order is None:
        return torch.full_like(span, control.step_size or math.inf)
    if control.first_step is not None:
        return (torch.zeros_like(span) + control.first_step).clamp(max=control.max_step)
    state, slope = state.detach(), slope.detach()
    unit = control.scale * (control.atol + control.rtol * (state.abs() / control.scale))

    def size(change: Tensor) -> Tensor:
        return torch.where(change == 0, 0.0, change.abs() / unit).amax(-1).double()

    speed = size(slope)
    h = torch.where(speed > 0, 0.01 * size(state) / speed, span)
    h = torch.where((h > 0) & torch.isfinite(h), torch.minimum(h, span), 1e-6 * span)
    length = h.to(state.dtype).unsqueeze(-1)
    bend = size(length * (field(origin + h, state + length * slope).detach() - slope))
    larger = torch.maximum(h * speed, bend)
    guess = (0.01 / larger).pow(1.0 / method.error_order)
    guess = torch.where(torch.isfinite(guess), guess, 1.0).clamp(max=100.0)
    return _round(torch.minimum(h * guess, span)).clamp(max=control.max_step)
