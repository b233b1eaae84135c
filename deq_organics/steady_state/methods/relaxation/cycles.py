"""Cycles of the dynamics: noticed where a trajectory returns to itself, claimed where one is found.

A trajectory that comes back close to an earlier state may still be on its way elsewhere: a spiral
that grows slowly, a transient past a saddle, chaos. So Newton's method looks for the periodic
solution beside it, which is claimed if the state comes back after several of its periods, if the
monodromy matrix (the derivative of the state after a period by the state before) shows that every
perturbation but the one along the cycle decays, and if the trajectory itself approaches it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ....problem import Problem
from .rosenbrock import take_step, tolerances

__all__ = ["Recurrence", "verify_cycles"]

# Distances are in parts of the trajectory's own extent: in which to look for a return; noticed as
# one; noticed without a second one; of the periodic solution from there; at which that is closed.
_NEIGHBOURHOOD, _NOTICED, _CERTAIN, _BESIDE, _CLOSED = 0.3, 0.15, 1e-3, 0.2, 1e-4
_TURNS = 6
# Smaller oscillations, in parts of the state, are too close to the integration's own errors.
_SMALLEST_EXTENT = 1e-3
_FIRST_REFERENCE = 32
_SECANT_STEPS = 3
_ROUGH_RTOL, _ROUGH_STEPS, _RTOL, _NEWTON_STEPS, _PERIODS = 1e-4, 2, 1e-6, 5, 2
# Of one period.
_MAX_STEPS = 1_000
# A return of the periodic solution to itself, between the steps of its integration.
_SAME = 1e-3
# How much of a distance from the cycle may change otherwise than by the monodromy matrix.
_NONLINEAR = 0.3
# Of the monodromy matrix: the error of its eigenvalue 1, and the largest other one's modulus.
_CONSISTENT, _CONTRACTING = 2e-2, 0.98


class _Piece(NamedTuple):
    """Of a trajectory, between two of its states: a cubic with their slopes."""

    first: Tensor
    last: Tensor
    first_slope: Tensor
    last_slope: Tensor
    length: Tensor
    """``(B,)``, in time"""

    def at(self, part: Tensor) -> Tensor:
        """The states ``(B, 2n)`` after the parts ``(B,)`` of the length, from 0 to 1."""
        s, h = part.unsqueeze(-1), self.length.unsqueeze(-1)
        left = (1.0 - s).square() * ((1.0 + 2.0 * s) * self.first + s * h * self.first_slope)
        right = s.square() * ((3.0 - 2.0 * s) * self.last - (1.0 - s) * h * self.last_slope)
        return left + right


class _Section(NamedTuple):
    """The plane through a state that the trajectory crosses at right angles there."""

    origin: Tensor
    """``(B, 2n)``"""
    normal: Tensor
    """``(B, 2n)``"""
    scale: Tensor
    """The size of each entry of the state, ``(B, 2n)``."""

    def side(self, state: Tensor) -> Tensor:
        """Before (negative) or behind the plane, ``(B,)``."""
        return ((state - self.origin) * self.normal).sum(-1)

    def distance(self, state: Tensor) -> Tensor:
        """From the origin, ``(B,)``."""
        return _size(state - self.origin, self.scale)

    def cut(self, piece: _Piece, before: Tensor, after: Tensor) -> Tensor:
        """After what part ``(B,)`` of a piece it crosses the plane, from one side to the other."""
        low, high = torch.zeros_like(after), torch.ones_like(after)
        part = high
        for _ in range(_SECANT_STEPS):
            gap = after - before
            part = low - before * (high - low) / torch.where(gap > 0, gap, 1.0)
            side = self.side(piece.at(part))
            low, before = torch.where(side < 0, part, low), torch.where(side < 0, side, before)
            high, after = torch.where(side < 0, high, part), torch.where(side < 0, after, side)
        return part


class Recurrence:
    """Watches trajectories for returns to a reference, a state of their own that is renewed.

    The references lie ever longer apart, as in Brent's algorithm for cycles of a map, so that any
    transient ends and any period fits in between. Two returns tell how fast they approach a limit,
    and where it is: if that is close by there may be a cycle, and else perhaps the focus of a
    spiral. Returns that circle around their limit are believed after some turns.

    Attributes:
        returned: Mask ``(B,)`` of the trajectories that have returned, as far as can be told.
        period: How long that took, ``(B,)``.
        reference: Where to, ``(B, 2n)``.
        extent: Of the trajectory since the reference, in parts of ``scale``, ``(B,)``.
        scale: The size of each entry of the state, ``(B, 2n)``.
    """

    def __init__(self, state: Tensor, slope: Tensor, scale: Tensor, time: Tensor) -> None:
        self.returned = torch.zeros_like(time, dtype=torch.bool)
        self.period, self.extent = torch.zeros_like(time), torch.zeros_like(time)
        self.reference, self.scale = state, scale
        self._normal, self._since = slope / scale.square(), time
        self._low = self._high = self._first = state
        self._first_time, self._before = torch.zeros_like(time), torch.zeros_like(time)
        self._last_time, self._turns = torch.zeros_like(time), torch.zeros_like(time)
        self._age = torch.zeros_like(time, dtype=torch.int64)
        self._lifetime = torch.full_like(self._age, _FIRST_REFERENCE)

    @property
    def _section(self) -> _Section:
        return _Section(self.reference, self._normal, self.scale)

    def observe(
        self,
        old: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        scale: Tensor,
        time: Tensor,
        length: Tensor,
        moved: Tensor,
    ) -> None:
        """Take note of steps of some ``length`` from states and slopes ``old`` to ``new``.

        ``moved`` ``(B,)`` tells which trajectories took the step; ``scale`` and ``time`` are those
        after it.
        """
        state, slope = new
        section = self._section
        self._low, self._high = torch.minimum(self._low, state), torch.maximum(self._high, state)
        self.extent = _size(self._high - self._low, self.scale)
        after = section.side(state)
        crossing = moved & (self._before < 0) & (after >= 0) & (self._age > 0)
        crossing &= section.distance(state) <= _NEIGHBOURHOOD * self.extent
        missed = torch.zeros_like(crossing)
        if crossing.any():
            piece = _Piece(old[0], state, old[1], slope, length)
            part = section.cut(piece, self._before, after)
            point, when = piece.at(part), time - (1.0 - part) * length - self._since
            missed = self._note(point, when, crossing & (self.extent >= _SMALLEST_EXTENT))
        self._before = torch.where(moved, after, self._before)
        self._age = self._age + moved
        due = moved & ~self.returned & (self._age >= self._lifetime)
        self._lifetime = torch.where(due, 2 * self._lifetime, self._lifetime)
        # The end of a pause, too.
        due = due | missed | (moved & (self._age == 0))
        if due.any():
            self._renew(state, slope, scale, time, due)

    def _note(self, point: Tensor, when: Tensor, crossing: Tensor) -> Tensor:
        """Note crossings at ``point``; returns those ``(B,)`` that have no cycle near by."""
        distance, known = self._section.distance(point), self._turns > 0
        close = crossing & (distance <= _NOTICED * self.extent)
        turns = self._turns + 1.0
        turn = when - self._last_time
        again = close & known & ((turn - self._first_time).abs() <= 0.2 * self._first_time)
        first, further = self._section.distance(self._first), _size(point - self._first, self.scale)
        # The sum of a geometric series.
        limit = torch.where(further < first, first.square() / (first - further), torch.inf)
        second = again & (turns == 2.0)
        found = second & (limit <= _BESIDE * self.extent)
        found |= again & (turns >= _TURNS)
        found |= close & ~known & (distance <= _CERTAIN * self.extent)
        self.returned = self.returned | found
        self.period = torch.where(found, when / turns, self.period)
        new = close & ~known
        self._first = torch.where(new.unsqueeze(-1), point, self._first)
        self._first_time = torch.where(new, when, self._first_time)
        self._last_time = torch.where(new | again, when, self._last_time)
        self._turns = torch.where(new | again, turns, self._turns)
        # Every return is farther than the one before: they do not circle.
        return second & ~found & (further < first)

    def _renew(
        self, state: Tensor, slope: Tensor, scale: Tensor, time: Tensor, rows: Tensor
    ) -> None:
        """Make the present state the reference of the trajectories ``rows`` ``(B,)``."""
        here = rows.unsqueeze(-1)
        self.scale = torch.where(here, scale, self.scale)
        self.reference = torch.where(here, state, self.reference)
        self._normal = torch.where(here, slope / scale.square(), self._normal)
        self._low = torch.where(here, state, self._low)
        self._high = torch.where(here, state, self._high)
        self._since = torch.where(rows, time, self._since)
        self._before = torch.where(rows, 0.0, self._before)
        self._turns = torch.where(rows, 0.0, self._turns)
        self._age = torch.where(rows, 0, self._age)

    def dismiss(self, rows: Tensor) -> None:
        """The returns of trajectories ``rows`` ``(B,)`` led to no cycle: pause, ever longer."""
        self.returned = self.returned & ~rows
        self._age = torch.where(rows, -self._lifetime, self._age)
        self._lifetime = torch.where(rows, 2 * self._lifetime, self._lifetime)

    def select(self, keep: Tensor) -> None:
        """Go on with the trajectories of the mask ``keep`` ``(B,)``."""
        for name, value in vars(self).items():
            setattr(self, name, value[keep])


def verify_cycles(
    problem: Problem, state: Tensor, period: Tensor, scale: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the trajectories from ``state`` ``(B, 2n)`` end on a cycle of about that ``period``.

    ``scale`` and ``extent`` are those of :class:`Recurrence`.

    Returns:
        The verdict ``(B,)``, the period ``(B,)``, and where the verdict is true a point of the
        cycle, ``(B, 2n)``.
    """
    limit, slope = _CLOSED * extent, problem.flow(state)
    point, first = state, period
    alive = torch.ones_like(period, dtype=torch.bool)
    for rtol in (*[_ROUGH_RTOL] * _ROUGH_STEPS, *[_RTOL] * _NEWTON_STEPS):
        section = _Section(point, problem.flow(point) / scale.square(), scale)
        time = torch.where(alive, period, 0.0)
        end, monodromy, found = _one_period(problem, point, time, rtol, section, _SAME * extent)
        gap = _size(end - point, scale)
        # Where a period takes too many steps, it is not tried again.
        alive &= torch.isfinite(gap)
        open_ = alive & (~(gap <= limit) | (rtol == _ROUGH_RTOL))
        if not open_.any():
            break
        step, delay = _close(monodromy, end - point, problem.flow(end), slope, scale)
        usable = open_ & (_size(step, scale) <= extent) & (delay.abs() <= 0.5 * period)
        point = torch.where(usable.unsqueeze(-1), point + step, point)
        period = torch.where(usable, period + delay, period)
    distance, here = _size(point - state, scale), problem.flow(point)
    verdict = alive & (gap <= limit) & (distance <= _BESIDE * extent)
    verdict &= (period - first).abs() <= _BESIDE * first
    # A fixed point returns after every time.
    verdict &= 2.0 * _size(here, scale) >= _size(slope, scale)
    verdict &= _contracts(monodromy, here, scale)
    rows = verdict.nonzero().squeeze(-1)
    if rows.numel() == 0:
        return verdict, period, point
    # The periodic solution goes on, and beside it the trajectory.
    both = torch.cat([rows, rows])
    ends, times = torch.cat([end[rows], state[rows]]), period[both]
    for passed in range(1, 1 + _PERIODS):
        ends = _one_period(problem.select(both), ends, times, _RTOL)[0]
        gap = _size(ends[: rows.numel()] - point[rows], scale[rows])
        # An error of the period adds up.
        verdict[rows] &= gap <= (1 + passed) * limit[rows]
    trajectory = state.index_put((rows,), ends[rows.numel() :])
    # Where perturbations decay as the monodromy matrix says, the trajectory does so, too. Along the
    # cycle they stay.
    predicted = (state - point).unsqueeze(-1)
    for _ in range(_PERIODS):
        predicted = monodromy @ predicted
    error = trajectory - point - predicted.squeeze(-1)
    weight = here / scale.square()
    along = (error * weight).sum(-1) / (here * weight).sum(-1)
    error = error - along.unsqueeze(-1) * here
    verdict &= _size(error, scale) <= torch.maximum(_NONLINEAR * distance, limit)
    # It may have been seen after several turns only.
    turns = torch.where(verdict, (period / found).round().clamp_min(1.0), 1.0)
    return verdict, period / turns, point


def _close(
    monodromy: Tensor, gap: Tensor, end_slope: Tensor, normal: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Newton's step for a periodic solution, across ``normal``, and for its period."""
    size = gap.shape[-1]
    identity = torch.eye(size, dtype=gap.dtype, device=gap.device)
    change = (monodromy - identity) * (scale.unsqueeze(-2) / scale.unsqueeze(-1))
    speed = end_slope / scale
    rate = _size(end_slope, scale).unsqueeze(-1)
    border = torch.cat([normal / scale, torch.zeros_like(rate)], -1) / _size(normal, scale)[:, None]
    rows = torch.cat([change, (speed / rate).unsqueeze(-1)], -1)
    matrix = torch.cat([rows, border.unsqueeze(-2)], -2)
    right = -torch.cat([gap / scale, torch.zeros_like(rate)], -1)
    solution = torch.linalg.solve_ex(matrix, right)[0]
    return solution[:, :-1] * scale, solution[:, -1] / rate.squeeze(-1)


def _size(difference: Tensor, scale: Tensor) -> Tensor:
    return (difference / scale).abs().amax(-1)


def _contracts(monodromy: Tensor, slope: Tensor, scale: Tensor) -> Tensor:
    """Whether all eigenvalues but that along the cycle are inside the unit circle, ``(B,)``."""
    finite = torch.isfinite(monodromy).all((-2, -1))
    multipliers = torch.linalg.eigvals(torch.where(finite[:, None, None], monodromy, 0.0))
    off = (multipliers - 1.0).abs()
    trivial = off.argmin(-1, keepdim=True)
    others = multipliers.abs().scatter(-1, trivial, 0.0).amax(-1)
    carried = (monodromy @ slope.unsqueeze(-1)).squeeze(-1)
    along = _size(carried - slope, scale) / _size(slope, scale)
    consistent = (along <= _CONSISTENT) & (off.amin(-1) <= _CONSISTENT)
    return finite & consistent & (others <= _CONTRACTING)


def _one_period(
    problem: Problem,
    state: Tensor,
    period: Tensor,
    rtol: float,
    section: _Section | None = None,
    same: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states after ``period`` ``(B,)``.

    With a ``section`` also the monodromy matrices ``(B, 2n, 2n)`` and after what time ``(B,)`` the
    states first came back to its origin within the distance ``same``, ``period`` if not before it;
    else I and ``period``.
    """
    slope, time, first = problem.flow(state), torch.zeros_like(period), period
    identity = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
    monodromy = identity.expand(state.shape[0], -1, -1)
    before = torch.zeros_like(period)
    left, h = period, 1e-3 * period
    for _ in range(_MAX_STEPS):
        going = left > 0
        if not going.any():
            break
        length, size = torch.minimum(h, left), tolerances(problem, state)
        step = take_step(problem, state, slope, size, length, rtol)
        moved = going & step.accepted
        here, old = moved.unsqueeze(-1), (state, slope)
        state = torch.where(here, step.state, state)
        slope = torch.where(here, problem.flow(state), slope)
        if section is not None and same is not None:
            piece = _Piece(old[0], state, old[1], slope, length)
            jacobian = problem.jacobian(*piece.at(torch.full_like(h, 0.5)).chunk(2, -1))
            jacobian = torch.where(moved[:, None, None], length[:, None, None] * jacobian, 0.0)
            monodromy = torch.linalg.matrix_exp(jacobian) @ monodromy
            after = section.side(state)
            crossing = moved & (before < 0) & (after >= 0)
            if crossing.any():
                part = section.cut(piece, before, after)
                back = crossing & (section.distance(piece.at(part)) <= same)
                when = time + part * length
                first = torch.where(back, torch.minimum(first, when), first)
            before = torch.where(moved, after, before)
        time = torch.where(moved, time + length, time)
        # The last step is the whole rest, so that nothing is left by rounding.
        left = torch.where(moved, torch.where(length < left, left - length, 0.0), left)
        # A step that the end cut short does not shorten the next one.
        h = torch.where(moved & (length < h), h, step.next_length)
    return torch.where((left > 0).unsqueeze(-1), torch.nan, state), monodromy, first
