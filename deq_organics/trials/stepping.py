"""The stochastic Heun scheme for many trials of a batch of circuits."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..problem import Problem
from ..response.drives import Drive
from ..response.noise_sources import rate_roots
from .kicks import Kicks
from .random_numbers import Streams

__all__ = ["Plan", "Recorder", "follow", "steps_between"]

# Random numbers that are drawn at once, and for how many steps: few trials may take few of them.
_NUMBERS_AT_A_TIME, _STEPS_AT_A_TIME = 2**20, 256
# What has grown by this factor has diverged.
_GROWTH = 1e6

Recorder = Callable[[int, Tensor, Tensor], None]
"""Takes the index of a time, and ``y`` and ``a`` of the trials there, ``(B, R, n)``."""


class Plan(NamedTuple):
    """What all blocks of trials share: a flat batch of ``B`` circuits and how to step it."""

    problem: Problem
    input_drive: Drive
    inhibitory_drive: Drive
    steady: bool
    """Whether neither drive changes."""
    start: tuple[Tensor, Tensor]
    """``(y, a)``, ``(B, n)`` each."""
    size: Tensor
    """Largest magnitude of each circuit's start and drives, ``(B,)``."""
    times: Sequence[float]
    """The first one, with what comes before the record, and those of the record."""
    recorded: int
    """How many of the last times are recorded."""
    longest: float
    """Longest step."""


class _Field:
    """``(dy/dt, da/dt)`` of trials ``(B, R, n)``."""

    def __init__(self, plan: Plan) -> None:
        problem = plan.problem
        self._plan, self.exponent = plan, problem.exponent
        if isinstance(self.exponent, Tensor):
            self.exponent = torch.atleast_1d(self.exponent).unsqueeze(-2)
        self._tau = tuple(tau.unsqueeze(-2) for tau in (problem.tau_y, problem.tau_a))
        weights = (problem.recurrent_weight, problem.normalization_weight)
        self._weights = weights
        # One product for all trials of a circuit: broadcasting would copy its weights for each.
        self._own = [w is not None and w.ndim == 3 for w in weights]
        self._drives: tuple[Tensor, Tensor] | None = None

    def drives(self, time: float) -> tuple[Tensor, Tensor]:
        """Both drives, ``(B, 1, n)`` or ``(1, 1, n)``."""
        if self._drives is None or not self._plan.steady:
            start = self._plan.start[0]
            times = torch.full((len(start),), time, dtype=torch.float64, device=start.device)
            self._drives = (
                self._plan.input_drive(times).unsqueeze(-2),
                self._plan.inhibitory_drive(times).unsqueeze(-2),
            )
        return self._drives

    def __call__(self, time: float, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        d, c = self.drives(time)
        if any(self._own):
            d, c = (part.expand(len(y), 1, -1) for part in (d, c))
            dims = tuple(0 if own else None for own in self._own)
            m = self.exponent
            each = isinstance(m, Tensor) and m.ndim == 3
            if isinstance(m, Tensor) and each:
                m = m.expand(len(y), 1, -1)
            residual = torch.vmap(self._residual, in_dims=(0, 0, 0, 0, *dims, 0 if each else None))
            parts = residual(y, a, d, c, *self._weights, m)
        else:
            parts = self._residual(y, a, d, c, *self._weights, self.exponent)
        return parts[0] / self._tau[0], parts[1] / self._tau[1]

    def _residual(
        self,
        y: Tensor,
        a: Tensor,
        d: Tensor,
        c: Tensor,
        wr: Tensor | None,
        w: Tensor,
        exponent: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        rectified = self._plan.problem.rectified
        return equations.residual(y, a, d, c, wr, w, exponent, rectified)


def follow(plan: Plan, kicks: Kicks, streams: Streams, trials: int, record: Recorder) -> Tensor:
    """Step a block of trials from the first time to the last, and record it.

    The drift is taken as in Heun's method, the noise as its exact integral over the step, with the
    rates of multiplicative noise at the beginning of the step (Ito). Means and covariances have an
    error of second order in the step.

    Returns:
        The last recorded time at which each trial was finite, ``(B, R)``, float64; that before the
        first where it was none. Trials are NaN after it.
    """
    field, n = _Field(plan), plan.start[0].shape[-1]
    y, a = (part.unsqueeze(1).expand(-1, trials, -1).clone() for part in plan.start)
    kicks.start(streams.draw_first(kicks.first_width))
    reached = torch.full(y.shape[:2], plan.times[0], dtype=torch.float64, device=y.device)
    going = torch.ones_like(reached, dtype=torch.bool)
    limit = _GROWTH * plan.size.unsqueeze(-1)
    first = len(plan.times) - plan.recorded
    if first == 0:
        record(0, y, a)
    source = _Numbers(streams)
    for index in range(1, len(plan.times)):
        begin, end = plan.times[index - 1], plan.times[index]
        count = steps_between(begin, end, plan.longest)
        length = (end - begin) / count
        for number in range(count):
            time = begin + number * length
            roots = None
            if kicks.multiplicative:
                roots = rate_roots(y, a, field.exponent, plan.problem.rectified)
            kick_y, kick_a = kicks.step(length, source.next(), roots).split(n, -1)
            slope_y, slope_a = field(time, y, a)
            there = field(
                time + length,
                torch.add(y, slope_y, alpha=length) + kick_y,
                torch.add(a, slope_a, alpha=length) + kick_a,
            )
            y = torch.add(y, slope_y + there[0], alpha=0.5 * length) + kick_y
            a = torch.add(a, slope_a + there[1], alpha=0.5 * length) + kick_a
        largest = torch.maximum(y.abs().amax(-1), a.abs().amax(-1))
        # Comparisons with NaN are false.
        going = going & (largest <= limit)
        if not going.all():
            y = torch.where(going.unsqueeze(-1), y, math.nan)
            a = torch.where(going.unsqueeze(-1), a, math.nan)
        reached = torch.where(going, end, reached)
        if index >= first:
            record(index - first, y, a)
    return reached


def steps_between(begin: float, end: float, longest: float) -> int:
    """How many steps, none longer than the longest but for rounding."""
    return max(1, math.ceil((end - begin) / longest * (1.0 - 1e-9)))


class _Numbers:
    """Hands out a block's random numbers step by step, drawn for many steps at once."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._left: Iterator[Tensor] = iter(())
        together = _NUMBERS_AT_A_TIME // max(1, streams.width * streams.count)
        self._together = min(max(1, together), _STEPS_AT_A_TIME)

    def next(self) -> Tensor:
        found = next(self._left, None)
        if found is None:
            self._left = iter(self._streams.draw(self._together))
            found = next(self._left)
        return found
