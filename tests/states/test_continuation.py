"""Branches and bifurcations: where theory or a dense computation says that they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, vector
from torch import Tensor

from deq_organics import Circuit, continuation, critical_drive_2d, fixed_points_2d
from deq_organics.states.arclength import Limits, follow_curve, start_point


def neuron(wr: float, c: float, w: float, tau_a: float) -> Callable[[float], Circuit]:
    """Circuits of two neurons, of their drive."""
    return lambda d: Circuit(vector(d), c, vector((wr,)), vector((w,)), 1.0, tau_a)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_folds_are_at_the_critical_drive(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(4, generator=generator, dtype=DOUBLE).tolist()
    make = neuron(1.5 + 3.0 * u[0], 0.01 + 0.05 * u[1], 0.3 + u[2], 0.3 + u[3])
    critical = float(critical_drive_2d(make(0.1)))
    assert critical > 0
    found = continuation(make, [-2 * critical, -0.3 * critical, 1.7 * critical], cycles=False)
    assert sorted(point.value for point in found.folds) == pytest.approx(
        [-critical, critical], abs=1e-6 * max(1.0, critical)
    )
    assert len(found.branches) == 1
    assert (found.branches[0].residual < 1e-9).all()
    for value in (-2 * critical, 0.1 * critical):
        known = fixed_points_2d(make(value))
        crossed = found.branches[0].value
        count = ((crossed[:-1] - value) * (crossed[1:] - value) < 0).sum() + (
            crossed == value
        ).sum()
        assert int(count) == int(known.count)


def wave(gain: float) -> Circuit:
    """A rotation with some gain in the recurrent weights."""
    turn = vector((gain, -3.0), (3.0, gain))
    return Circuit(vector(0.05, 0.02), 0.01, turn, torch.ones(2, 2, dtype=DOUBLE))


@pytest.mark.slow
def test_hopf_points_are_where_the_leading_pair_crosses() -> None:
    """Against bisection on dense eigenvalues of steady states that are solved anew."""
    found = continuation(wave, [-0.5, 0.5, 1.2, 1.5], starts=20)
    assert found.hopf

    def leading(value: float, near: Tensor) -> complex:
        circuit = wave(value)
        state = near
        for _ in range(30):
            y, a = state.chunk(2)
            flow = torch.cat(circuit.vector_field(y, a))
            state = state - torch.linalg.solve(circuit.jacobian(y, a), flow)
        values = torch.linalg.eigvals(circuit.jacobian(*state.chunk(2)))
        return complex(values[values.real.argmax()])

    for point in found.hopf:
        state = torch.cat([point.y, point.a])
        step = 1e-6
        before, after = (leading(point.value + s, state) for s in (-step, step))
        assert before.real * after.real < 0
        middle = leading(point.value, state)
        assert abs(middle.imag) / (2 * torch.pi) == pytest.approx(point.frequency, rel=1e-6)
    cycles = found.cycles
    assert len(cycles.value) > 0
    assert (cycles.value > min(point.value for point in found.hopf)).all()
    assert (cycles.amplitude.amax(-1) > 0).all()
    # Close to the Hopf point the cycle turns with the frequency that it has there.
    assert float(cycles.period[0]) == pytest.approx(1.0 / found.hopf[0].frequency, rel=0.5)


class Circle:
    """``x^2 + v^2 = 1`` as a family: an isolated branch with two folds."""

    def flow(self, state: Tensor, value: float) -> Tensor:
        return state**2 + value**2 - 1.0

    def jacobian(self, state: Tensor, value: float) -> Tensor:
        return torch.diag(2.0 * state)

    def by_value(self, state: Tensor, value: float) -> Tensor:
        return torch.full_like(state, 2.0 * value)

    def sizes(self, state: Tensor, value: float) -> Tensor:
        return torch.ones_like(state)

    def is_state(self, state: Tensor) -> bool:
        return bool(torch.isfinite(state).all())


def test_any_vector_field_will_do_and_a_closed_branch_closes() -> None:
    family, limits = Circle(), Limits(-2.0, 2.0, 0.05, 1e-7, 1000)
    start = start_point(family, vector(0.8), 0.6, limits)
    assert start is not None
    curve = follow_curve(family, start, limits)
    assert curve.why == "the branch closes on itself"
    folds = sorted(event.point.value for event in curve.events if event.kind == "fold")
    assert folds == pytest.approx([-1.0, 1.0], abs=1e-9)


@pytest.mark.slow
def test_it_says_why_a_branch_ends_and_draws() -> None:
    """With ``wr = 0`` the fixed point goes to infinity where ``W d^2 = 1``."""
    make = neuron(0.0, 0.05, 1.0, 1.0)
    found = continuation(make, [0.0, 2.0])
    assert "no step of any length leads on from" in str(found)
    pyplot = pytest.importorskip("matplotlib.pyplot")
    _, ax = pyplot.subplots()
    assert continuation(neuron(3.0, 0.05, 0.7, 0.3), [-1.0, 0.1, 1.0]).plot(0, ax=ax) is ax
    assert len(ax.lines) == 4
    pyplot.close("all")


GOOD = neuron(3.0, 0.05, 0.7, 0.3)
MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"make_circuit": None}, TypeError, r"make_circuit: got NoneType"),
    ({"make_circuit": lambda d: d}, TypeError, r"make_circuit: it returned float"),
    (
        {"make_circuit": lambda d: GOOD(d).to(torch.float32)},
        ValueError,
        r"make_circuit: it returned torch\.float32",
    ),
    (
        {
            "make_circuit": lambda d: Circuit(
                vector(d), 0.05, None, vector((0.7,)), exponent=vector(2.0)
            )
        },
        ValueError,
        r"make_circuit: it returned a circuit whose exponent is a tensor",
    ),
    ({"values": [1.0]}, ValueError, r"values: got shape \(1,\)"),
    ({"values": [1.0, 0.0]}, ValueError, r"values: got shape \(2,\), expected \(V,\) increasing"),
    ({"values": [0.0, "1"]}, TypeError, r"values: got '1'"),
    ({"starts": 0}, ValueError, r"starts: got 0"),
    ({"longest_step": 0.0}, ValueError, r"longest_step: got 0\.0"),
]


@pytest.mark.parametrize(("given", "error", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_bad_input(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        continuation(**{"make_circuit": GOOD, "values": [0.0, 1.0], **given})
