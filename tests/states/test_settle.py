"""Where trajectories end: against scipy, and by circuits whose end is known."""

import math
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, vector

import settling
from deq_organics import Circuit, Fate, Status, check_stability, fixed_points, settle, simulate


def ring() -> Circuit:
    """A rotation in the recurrent weights, which ends on a cycle."""
    turn = vector((1.5, -3.0), (3.0, 1.5))
    return Circuit(vector(0.05, 0.02), 0.01, turn, torch.ones(2, 2, dtype=DOUBLE))


def bistable(d: float = 0.1) -> Circuit:
    return Circuit(vector(d), 0.05, vector((3.0,)), vector((0.7,)), 1.0, 0.3)


@pytest.mark.slow
def test_a_cycle_has_its_period_and_amplitude() -> None:
    """Against crossings and extremes of a long simulation."""
    found = settle(ring())
    assert int(found.fate) == Fate.CYCLE
    t = torch.linspace(0, 400, 3, dtype=DOUBLE)
    late = simulate(ring(), t, method="dopri8", rtol=1e-9)
    turn = torch.linspace(0, 3 * float(found.period), 6001, dtype=DOUBLE)
    path = simulate(ring(), turn, start=(late.y[-1], late.a[-1]), rtol=1e-9)
    highest, lowest = path.y.amax(0), path.y.amin(0)
    torch.testing.assert_close(found.highest_y, highest, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.lowest_y, lowest, rtol=1e-3, atol=1e-4)
    swing = torch.relu(highest).square() - torch.relu(lowest).square()
    torch.testing.assert_close(found.amplitude, swing, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(path.y[4000], path.y[0], rtol=1e-3, atol=1e-3)
    middle = 0.5 * (highest[0] + lowest[0])
    rises = ((path.y[:-1, 0] < middle) & (path.y[1:, 0] >= middle)).sum()
    assert rises in (3, 4)  # No multiple of the period was told.
    assert float(found.frequency) == pytest.approx(1.0 / float(found.period))
    assert "end on a stable cycle, period" in str(found)


def test_starts_that_end_at_different_fixed_points() -> None:
    y = vector((-1.0,), (1.0,))
    found = settle(bistable(), (y, torch.full_like(y, 0.05)))
    assert found.fate.tolist() == [Fate.FIXED_POINT] * 2
    assert found.y[0] < 0 < found.y[1]
    assert (found.residual < 1e-6).all()
    assert found.period.isnan().all()
    assert found.amplitude.isnan().all()
    report = check_stability(bistable(), (found.y[0], found.a[0]))
    assert report.stable
    assert "2 settle at a stable fixed point" in str(found)


def test_a_tensor_as_exponent_is_as_good_as_a_number() -> None:
    plain = Circuit(vector(0.4, 0.2), 0.05, None, torch.ones(2, 2, dtype=DOUBLE))
    each = Circuit(
        vector(0.4, 0.2), 0.05, None, torch.ones(2, 2, dtype=DOUBLE), exponent=vector(2.0, 2.0)
    )
    expected, found = settle(plain), settle(each)
    assert int(found.fate) == Fate.FIXED_POINT
    torch.testing.assert_close(found.y, expected.y)
    points = fixed_points(each, starts=20)
    torch.testing.assert_close(points.y, fixed_points(plain, starts=20).y)


def test_a_divergence_has_a_time() -> None:
    """The counterexample to Conjecture 5.3."""
    circuit = Circuit(vector(1.0), 0.5, vector((-1.0,)), vector((1.0,)))
    found = settle(circuit)
    assert int(found.fate) == Fate.DIVERGENCE
    assert 0 < float(found.time) < 100
    assert torch.isfinite(found.y).all()
    assert "1 diverge, known at t =" in str(found)


def test_a_trajectory_on_an_unstable_fixed_point_is_undecided() -> None:
    circuit = Circuit(vector(0.0), 0.05, vector((3.0,)), vector((0.7,)))
    found = settle(circuit)
    assert int(found.fate) == Fate.UNDECIDED
    assert int(found.status) == Status.UNSTABLE


def test_it_goes_on_from_a_trajectory_and_a_steady_state() -> None:
    path = simulate(bistable(), vector(0.0, 1.0, 2.0), start=(vector(-1.0), vector(0.05)))
    assert settle(bistable(), path).y.shape == (1,)
    assert settle(bistable(), path).y < 0
    state = bistable(-0.2).steady_state()
    torch.testing.assert_close(settle(bistable(-0.2), state).y, state.y, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_statements_against_a_long_integration(seed: int) -> None:
    """Random circuits of benchmarks/settling.py."""
    generator = torch.Generator().manual_seed(seed)
    verdicts = settling.compare(*settling.draw(12, generator))
    assert not [why for _, verdict, why in verdicts if verdict == "wrong"]
    assert sum(verdict == "right" for _, verdict, _ in verdicts) >= 9


@pytest.mark.parametrize(("given", "error", "message"), [
    ({"circuit": None}, TypeError, r"circuit: got NoneType, expected a Circuit"),
    ({"start": "here"}, ValueError, r"start: got 'here'"),
    ({"start": 1.0}, TypeError, r"start: got float"),
    ({"start": (vector(math.nan), vector(1.0))}, ValueError, r"start\[0\]: got 1 NaN"),
    ({"start": (vector(0.0), vector(-1.0))}, ValueError, r"start\[1\]: got a smallest value of -1"),
    ({"max_steps": 0}, ValueError, r"max_steps: got 0"),
])  # fmt: skip
def test_bad_input(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        settle(**{"circuit": bistable(), **given})
