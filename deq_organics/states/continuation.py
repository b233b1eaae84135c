"""Branches of fixed points over a parameter, through their folds, and the cycles beside them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import equations
from ..checks import as_float_tensor, check_bool, check_finite, check_number, check_positive_int
from ..circuit import Circuit
from ..stability.cayley import Verdict
from ..stability.spectrum import leading_eigenvalues, verdicts
from .arclength import CLOSED, Curve, Event, Limits, Point, follow_curve, point_at, start_point
from .diagram import BifurcationPoint, Branch, Continuation, CyclesAlong
from .family import CircuitFamily, stack
from .fate import Fate, settle
from .multiplicity import balanced_starts, distance, distinct, draw_starts, newton_from

__all__ = ["continuation"]

_TOL = 1e-12
# A fixed point that is closer than this to a branch lies on it.
_ON_BRANCH = 1e-5
# How far from an unstable fixed point the search for a cycle starts, in parts of the state.
_KICK = 1e-2
_SHORTEST = 1e-7


@torch.no_grad()
def continuation(
    make_circuit: Callable[[float], Circuit],
    values: Tensor | Sequence[float],
    *,
    starts: int = 50,
    seed: int = 0,
    cycles: bool = True,
    longest_step: float = 0.05,
    max_points: int = 2000,
) -> Continuation:
    """Follow all branches of fixed points that are found, and locate what happens along them.

    At each of the values Newton's method looks for fixed points from many starts. Those that lie on
    no known branch start one, which is followed in both directions by pseudo-arclength, through
    folds, until it leaves the range of the values or closes on itself, or says why it cannot go on.
    Folds, Hopf points and branch points are roots along the branch, located to the rounding of
    double precision. At each of the values where a fixed point has lost its stability to an
    oscillation, the dynamics beside it are followed; where they end on a stable cycle, that is
    verified as :func:`settle` does it, and told with its period and range.

    What is not found: branches without a fixed point at any of the values that Newton's method gets
    to, unstable cycles, and the branches that cross at a branch point.

    Args:
        make_circuit: From a value of the parameter, a float, to one circuit in float64. It has to
            be smooth between the first and the last of the values, and is asked for no others.
        values: Increasing values of the parameter, ``(V,)``, at least two.
        starts: Of Newton's method at each value.
        seed: Decides the starts.
        cycles: Whether to look for cycles.
        longest_step: Along a branch, in parts of the state's size and of the range of the values.
        max_points: Of a branch, in each direction.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A value does not fit, or a circuit is not one in float64; the message names
            the argument.
    """
    grid = _checked_values(values)
    count, most = check_positive_int("starts", starts), check_positive_int("max_points", max_points)
    check_bool("cycles", cycles)
    longest = check_number("longest_step", longest_step, low=1e-4, high=1.0)
    if not callable(make_circuit):
        raise TypeError(f"make_circuit: got {type(make_circuit).__name__}, expected a function")
    places = [float(value) for value in grid]
    family = CircuitFamily(make_circuit, places[0], places[-1])
    limits = Limits(places[0], places[-1], longest, _SHORTEST, most)
    curves: list[tuple[Curve, tuple[str, str]]] = []
    known: list[Tensor] = [grid.new_empty(0, 2 * family.n) for _ in places]
    notes: list[str] = []
    for place, value in enumerate(places):
        for state in _search(family, value, count, seed):
            if (distance(known[place], state) <= _ON_BRANCH).any():
                continue
            start = start_point(family, state, value, limits)
            if start is None:
                notes.append(f"a fixed point at {value:.6g} was found, from which no branch starts")
                continue
            curve, ends = _both_ways(family, start, limits)
            curves.append((curve, ends))
            for number, other in enumerate(places):
                on = _crossings(family, curve, other, limits)
                if number == place:
                    on = [*on, state]
                if on:
                    known[number] = torch.cat([known[number], torch.stack(on)])
    points = [
        _bifurcation(event, number)
        for number, (curve, _) in enumerate(curves)
        for event in curve.events
    ]
    return Continuation(
        grid,
        [_branch(family, curve, ends) for curve, ends in curves],
        points,
        _cycles(family, places, known if cycles else []),
        notes,
        family.exponent,
    )


def _checked_values(values: Any) -> Tensor:
    if not isinstance(values, Tensor):
        numbers = [check_number("values", value) for value in values]
        values = torch.tensor(numbers, dtype=torch.float64)
    grid = as_float_tensor("values", values).detach().double().cpu()
    check_finite("values", grid)
    if grid.ndim != 1 or grid.numel() < 2 or not (grid.diff() > 0).all():
        raise ValueError(
            f"values: got shape {tuple(grid.shape)}, expected (V,) increasing values, V >= 2"
        )
    return grid


def _search(family: CircuitFamily, value: float, count: int, seed: int) -> Tensor:
    """Fixed points ``(K, 2n)`` at a value."""
    problem = family.problem(value)
    y, a = (part[:, 0] for part in draw_starts(problem, count, seed))
    rest = problem.inhibitory_drive.expand_as(problem.input_drive)
    closed = torch.cat(problem.identity_steady_state(), -1)
    plain = torch.cat([torch.zeros_like(rest), rest], -1)
    drawn = torch.cat([y, a], -1)
    start = torch.cat([plain, closed, drawn, balanced_starts(problem, count, seed)])
    start = start[torch.isfinite(start).all(-1)]
    return distinct(newton_from(problem, start, _TOL), start[:0])


def _both_ways(
    family: CircuitFamily, start: Point, limits: Limits
) -> tuple[Curve, tuple[str, str]]:
    """The curve through a point, and why it ends at its first and last point."""
    forth = follow_curve(family, start, limits)
    if forth.why == CLOSED:
        return forth, (CLOSED, CLOSED)
    other = replace(start, by_state=-start.by_state, by_value=-start.by_value)
    back = follow_curve(family, other, limits)
    points = [*reversed(back.points[1:]), *forth.points]
    return Curve(points, [*reversed(back.events), *forth.events]), (back.why, forth.why)


def _crossings(family: CircuitFamily, curve: Curve, value: float, limits: Limits) -> list[Tensor]:
    """The states of a curve at a value of the parameter."""
    found: list[Tensor] = []
    for before, after in zip(curve.points, curve.points[1:], strict=False):
        if min(before.value, after.value) <= value <= max(before.value, after.value):
            if before.value == after.value:
                found.append(before.state)
                continue
            point = point_at(family, before, after, value, limits)
            if point is not None:
                found.append(point.state)
    return found


def _branch(family: CircuitFamily, curve: Curve, ends: tuple[str, str]) -> Branch:
    values = [point.value for point in curve.points]
    state = torch.stack([point.state for point in curve.points])
    y, a = state.chunk(2, -1)
    problem = stack([family.problem(value) for value in values])
    verdict = verdicts(problem, y, a)
    return Branch(
        state.new_tensor(values),
        y,
        a,
        verdict == Verdict.INSIDE,
        verdict == Verdict.UNDECIDED,
        leading_eigenvalues(problem, y, a),
        problem.relative_residual(y, a),
        ends,
    )


def _bifurcation(event: Event, number: int) -> BifurcationPoint:
    y, a = event.point.state.chunk(2)
    return BifurcationPoint(event.kind, event.point.value, y, a, event.frequency, number)


def _cycles(family: CircuitFamily, places: list[float], known: list[Tensor]) -> CyclesAlong:
    """Stable cycles beside fixed points from which an oscillation grows."""
    values: list[float] = []
    begins: list[Tensor] = []
    for value, states in zip(places, known, strict=False):
        for state in distinct(states, states[:0]):
            eigenvalues, vectors = torch.linalg.eig(family.jacobian(state, value))
            leading = eigenvalues.real.argmax()
            if eigenvalues[leading].real > 0 and eigenvalues[leading].imag != 0:
                along, size = vectors[:, leading].real, family.sizes(state, value)
                kick = _KICK * along / (along / size).abs().amax()
                values.append(value)
                begins.append(state + kick)
    n = family.n
    if not values:
        none = torch.empty(0, n, dtype=torch.float64)
        return CyclesAlong(none[:, 0], none[:, 0], none, none, none, none, none)
    problem, start = stack([family.problem(value) for value in values]), torch.stack(begins)
    y, a = start.chunk(2, -1)
    found = settle(Circuit(*problem), (y, a))
    kept: list[int] = []
    for row in (found.fate == Fate.CYCLE).nonzero().flatten().tolist():
        again = any(
            values[row] == values[other]
            and torch.allclose(found.period[row], found.period[other], rtol=1e-3)
            and torch.allclose(found.highest_y[row], found.highest_y[other], rtol=1e-2, atol=1e-6)
            for other in kept
        )
        if not again:
            kept.append(row)
    at = torch.tensor(kept, dtype=torch.int64)
    lowest, highest = found.lowest_y[at], found.highest_y[at]
    rates = [equations.firing_rate(part, family.exponent) for part in (highest, lowest)]
    return CyclesAlong(
        torch.tensor(values, dtype=torch.float64)[at],
        found.period[at],
        lowest,
        highest,
        found.lowest_a[at],
        found.highest_a[at],
        rates[0] - rates[1],
    )
