"""Pseudo-arclength continuation: zeros of ``f(x, value) = 0`` along a curve, through its folds.

Nothing here knows what the equations are. A :class:`Family` has a vector field and its Jacobian for
every value of one parameter; all numbers are double precision. A step predicts along the curve's
tangent and corrects by Newton's method in the hyperplane at right angles to it (Keller, 1977), so
that a fold, where the curve turns back in the parameter, is a point like any other.

What happens between two points is located by a root of a function that is continuous along the
curve: the tangent's part along the parameter for a fold, and for a change of stability the real
part of the Jacobian's eigenvalue of a certain rank, in the order of their real parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from scipy.optimize import brentq
from torch import Tensor

__all__ = [
    "CLOSED",
    "Curve",
    "Event",
    "Family",
    "Limits",
    "Point",
    "follow_curve",
    "point_at",
    "start_point",
]

_CORRECTIONS = 8
# A correction, in parts of the state, after which Newton's method has converged quadratically.
_CONVERGED = 1e-9
# Cosines of the angle between two tangents: a step that turns more is refused, less is extended.
_REFUSED, _EXTENDED = 0.95, 0.995
_GROW, _SHRINK = 1.5, 0.5
# A correction longer than this part of the step may have led to another curve.
_ASTRAY = 0.5
# Imaginary parts below this part of the largest eigenvalue are those of a real one.
_REAL = 1e-6
_ROOT = 1e-13
# How many steps before its first point a curve may close: the next one may be longer than the last.
_NEAR = 1.6
CLOSED = "the branch closes on itself"


class Family(Protocol):
    """Vector fields of one parameter."""

    def flow(self, state: Tensor, value: float) -> Tensor:
        """``f(x, value)``, ``(k,)``."""
        ...

    def jacobian(self, state: Tensor, value: float) -> Tensor:
        """Its derivative by the state, ``(k, k)``."""
        ...

    def by_value(self, state: Tensor, value: float) -> Tensor:
        """Its derivative by the parameter, ``(k,)``, exact to some digits."""
        ...

    def sizes(self, state: Tensor, value: float) -> Tensor:
        """A positive size of each component, ``(k,)``: lengths are measured in these."""
        ...

    def is_state(self, state: Tensor) -> bool:
        """Whether the vector field is defined there, and the state is no rounding artefact."""
        ...


class Limits(NamedTuple):
    """Within which a curve is followed; lengths are in parts of the state and of the range."""

    low: float
    high: float
    longest: float
    shortest: float
    max_points: int

    @property
    def span(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Point:
    """A zero, and the curve's direction there."""

    state: Tensor
    """``(k,)``"""
    value: float
    by_state: Tensor
    """The tangent's part along the state, ``(k,)``."""
    by_value: float
    """The tangent's part along the parameter."""
    eigenvalues: Tensor
    """Of the Jacobian, complex ``(k,)``, the largest real part first."""

    @property
    def unstable(self) -> int:
        """How many eigenvalues have positive real parts."""
        return int((self.eigenvalues.real > 0).sum())


@dataclass(frozen=True)
class Event:
    """What happens at a point between two others."""

    kind: str
    """``"fold"``, ``"hopf"`` or ``"branch point"``."""
    point: Point
    frequency: float
    """Of the oscillation that starts at a Hopf point, in 1/time; 0 else."""


@dataclass
class Curve:
    """Points in their order along a curve, events among them, and why it ends at both ends."""

    points: list[Point]
    events: list[Event] = field(default_factory=list)
    why: str = ""

    def add(self, events: list[Event]) -> None:
        """Events, with their points, in the order in which they follow the last point."""
        self.events += events
        self.points += [event.point for event in events]


def start_point(family: Family, state: Tensor, value: float, limits: Limits) -> Point | None:
    """A point with a tangent, from a state that is nearly a zero; None where there is none."""
    along = torch.zeros(len(state) + 1, dtype=state.dtype)
    along[-1] = 1.0
    return _correct(family, state, value, along, limits)


def _units(family: Family, state: Tensor, value: float, limits: Limits) -> Tensor:
    """Lengths ``(k + 1,)`` of state and parameter in which the curve is measured."""
    sizes = family.sizes(state, value) * len(state) ** 0.5
    return torch.cat([sizes, sizes.new_tensor([limits.span])])


def _bordered(
    family: Family, state: Tensor, value: float, units: Tensor, along: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The Jacobian, the scaled system with the row ``along``, and the scale of its rows."""
    jacobian = family.jacobian(state, value)
    by_value = family.by_value(state, value).unsqueeze(-1)
    rows = torch.cat([jacobian, by_value], -1) * units
    scale = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return jacobian, torch.cat([rows / scale, along.unsqueeze(0)]), scale.squeeze(-1)


def _correct(
    family: Family, state: Tensor, value: float, along: Tensor, limits: Limits
) -> Point | None:
    """Newton's method at right angles to ``along`` ``(k + 1,)``, in the units of this point."""
    units, held = _units(family, state, value, limits), bool((along[:-1] == 0).all())
    for _ in range(_CORRECTIONS):
        _, matrix, scale = _bordered(family, state, value, units, along)
        flow = family.flow(state, value)
        right = torch.cat([-flow / scale, flow.new_zeros(1)])
        step, info = torch.linalg.solve_ex(matrix, right)
        if int(info) or not torch.isfinite(step).all():
            return None
        moved = step * units
        state, value = state + moved[:-1], value if held else value + float(moved[-1])
        if not family.is_state(state) or not limits.low <= value <= limits.high:
            return None
        if float(step.abs().amax()) <= _CONVERGED:
            return _with_tangent(family, state, value, along * units, limits)
    return None


def _with_tangent(
    family: Family, state: Tensor, value: float, before: Tensor, limits: Limits
) -> Point | None:
    """The point at a zero, its tangent in the sense of ``before`` ``(k + 1,)``, a direction."""
    units = _units(family, state, value, limits)
    along = before / units
    along = along / torch.linalg.vector_norm(along)
    jacobian, matrix, _ = _bordered(family, state, value, units, along)
    right = torch.zeros_like(along)
    right[-1] = 1.0
    tangent, info = torch.linalg.solve_ex(matrix, right)
    if int(info) or not torch.isfinite(tangent).all():
        return None
    tangent = units * tangent / torch.linalg.vector_norm(tangent)
    eigenvalues = torch.linalg.eigvals(jacobian)
    order = eigenvalues.real.argsort(descending=True, stable=True)
    return Point(state, value, tangent[:-1], float(tangent[-1]), eigenvalues[order])


def _direction(family: Family, point: Point, limits: Limits) -> tuple[Tensor, Tensor]:
    """The tangent of length 1 in units, and these."""
    units = _units(family, point.state, point.value, limits)
    direction = torch.cat([point.by_state, point.by_state.new_tensor([point.by_value])]) / units
    return direction / torch.linalg.vector_norm(direction), units


def _ahead(family: Family, point: Point, length: float, limits: Limits) -> Point | None:
    """The curve's point some ``length`` ahead, by a prediction and its correction."""
    if length == 0.0:
        return point
    along, units = _direction(family, point, limits)
    guess = length * along * units
    state, value = point.state + guess[:-1], point.value + float(guess[-1])
    landing = value
    if not limits.low < value < limits.high:
        if value == point.value:
            return None
        # The last step ends exactly at the end of the range.
        landing = min(max(value, limits.low), limits.high)
        part = (landing - point.value) / float(guess[-1])
        state, value = point.state + part * guess[:-1], landing
        fixed = torch.zeros_like(along)
        fixed[-1] = 1.0 if point.by_value > 0 else -1.0
    else:
        part, fixed = 1.0, along
    if not family.is_state(state):
        return None
    found = _correct(family, state, value, fixed, limits)
    if found is None:
        return None
    missed = torch.cat([found.state - state, state.new_tensor([found.value - value])]) / units
    astray = float(torch.linalg.vector_norm(missed)) > _ASTRAY * max(part * length, limits.shortest)
    return None if astray else found


def _turn(family: Family, first: Point, second: Point, limits: Limits) -> float:
    """The cosine of the angle between two points' tangents."""
    return float(
        torch.dot(_direction(family, first, limits)[0], _direction(family, second, limits)[0])
    )


def follow_curve(family: Family, start: Point, limits: Limits) -> Curve:
    """Follow a curve in the direction of the first point's tangent, until it ends."""
    curve, length, here = Curve([start]), 0.1 * limits.longest, start
    outward = {limits.low: -1.0, limits.high: 1.0}.get(start.value, 0.0)
    if outward * start.by_value > 0:
        curve.why = f"the end of the range is reached at {start.value:.6g}"
        return curve
    first, units = _direction(family, start, limits)
    for count in range(limits.max_points):
        ahead = _ahead(family, here, length, limits)
        cosine = -1.0 if ahead is None else _turn(family, here, ahead, limits)
        shortest = length <= limits.shortest
        refused = ahead is None or (cosine < _REFUSED and not shortest)
        events = [] if ahead is None or refused else _events(family, here, ahead, length, limits)
        if ahead is None or events is None or refused:
            if shortest:
                curve.why = f"no step of any length leads on from {here.value:.6g}"
                return curve
            length = max(_SHRINK * length, limits.shortest)
            continue
        curve.add(events)
        curve.points.append(ahead)
        if ahead.value in (limits.low, limits.high):
            curve.why = f"the end of the range is reached at {ahead.value:.6g}"
            return curve
        away = torch.cat([ahead.state - start.state, units.new_tensor([ahead.value - start.value])])
        away = away / units
        size = float(torch.linalg.vector_norm(away))
        passes = count > 2 and size <= _NEAR * length and float(torch.dot(away, first)) <= 0
        # The next step would pass the first point, in its own direction.
        if passes and _turn(family, start, ahead, limits) > _REFUSED:
            curve.add(_events(family, ahead, start, size, limits) or [])
            curve.points.append(start)
            curve.why = CLOSED
            return curve
        if cosine >= _EXTENDED:
            length = min(_GROW * length, limits.longest)
        here = ahead
    curve.why = f"max_points = {limits.max_points} are reached at {here.value:.6g}"
    return curve


def _events(
    family: Family, here: Point, ahead: Point, length: float, limits: Limits
) -> list[Event] | None:
    """What happens in a step of some ``length``, in its order; None where it was not located."""
    landed = ahead.value in (limits.low, limits.high)
    if landed:
        # Of the part of the step that was taken.
        along, units = _direction(family, here, limits)
        length = min(length, abs((ahead.value - here.value) / float(along[-1] * units[-1])))
    found: list[tuple[float, Event]] = []
    folds = here.by_value * ahead.by_value < 0
    if folds:
        place = _root(family, here, ahead, length, limits, lambda point: point.by_value)
        if place is None:
            return None
        found.append((place[0], Event("fold", place[1], 0.0)))
    low, high = sorted((here.unstable, ahead.unstable))
    rank = low
    while rank < high:
        place = _root(
            family,
            here,
            ahead,
            length,
            limits,
            lambda point, rank=rank: float(point.eigenvalues.real[rank]),  # type: ignore[misc]
        )
        if place is None:
            return None
        crossing = place[1].eigenvalues[rank]
        size = float(place[1].eigenvalues.abs().amax())
        if abs(float(crossing.imag)) > _REAL * size:
            frequency = abs(float(crossing.imag)) / (2.0 * torch.pi)
            found.append((place[0], Event("hopf", place[1], frequency)))
            rank += 2
            continue
        if not folds:
            found.append((place[0], Event("branch point", place[1], 0.0)))
        rank += 1
    return [event for _, event in sorted(found, key=lambda pair: pair[0])]


def _root(
    family: Family,
    here: Point,
    ahead: Point,
    length: float,
    limits: Limits,
    function: Callable[[Point], float],
) -> tuple[float, Point] | None:
    """Where in a step a function of the curve's points is zero, and the point there."""
    known = {0.0: here, length: ahead}

    def at(part: float) -> float:
        if part not in known:
            point = _ahead(family, here, part, limits)
            if point is None:
                raise ArithmeticError
            known[part] = point
        return function(known[part])

    if at(0.0) * at(length) > 0:
        return None
    try:
        place = float(brentq(at, 0.0, length, xtol=_ROOT * length, rtol=1e-14, maxiter=80))
        at(place)
    except (ArithmeticError, RuntimeError):
        return None
    return place, known[place]


def point_at(
    family: Family, before: Point, after: Point, value: float, limits: Limits
) -> Point | None:
    """The curve's point at a value between those of two neighbours without a fold in between."""
    if value in (before.value, after.value):
        return before if value == before.value else after
    part = (value - before.value) / (after.value - before.value)
    guess = (1.0 - part) * before.state + part * after.state
    along = torch.zeros(len(guess) + 1, dtype=guess.dtype)
    along[-1] = 1.0
    if not family.is_state(guess):
        return None
    found = _correct(family, guess, value, along, limits)
    if found is None:
        return None
    units = family.sizes(guess, value)
    stretch = ((after.state - before.state) / units).abs().amax()
    away = ((found.state - guess) / units).abs().amax()
    return found if float(away) <= max(float(stretch), 1e-9) else None
