"""What a simulation returns, how it ends early, and what it refuses."""

import copy
import math
import pickle
from typing import Any

import matplotlib
import pytest
import torch
from _circuits import DOUBLE, vector

from deq_organics import (
    Circuit,
    DynamicGain,
    InputGains,
    SimulationWarning,
    Trajectory,
    draw_circuits,
    fixed_points_2d,
    simulate,
)

matplotlib.use("Agg")
T = torch.linspace(0, 2, 5, dtype=DOUBLE)


def draw(count: int = 3, n: int = 2) -> Circuit:
    return draw_circuits(count, n, generator=torch.Generator().manual_seed(0))


def test_it_is_the_pair_that_it_was() -> None:
    circuit = draw()
    found = simulate(circuit, T)
    y, a = found
    assert isinstance(found, tuple)
    assert len(found) == 2
    assert found[0] is y is found.y
    assert found[1] is a is found.a
    assert torch.equal(found.rates, circuit.firing_rates(*found)[0])
    assert torch.equal(found.t, T)
    assert found.finished.all()
    assert (found.reached == 2).all()
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert type(twin) is Trajectory
        assert torch.equal(twin.rates, found.rates)
    mapped = torch.func.vmap(lambda d: simulate(Circuit(d, 0.5, None, torch.eye(2).double()), T))(
        circuit.input_drive
    )
    assert type(mapped) is tuple
    assert mapped[0].shape == (3, 5, 2)


def test_it_prints_and_draws() -> None:
    found = simulate(draw(), T)
    assert repr(found) == str(found)
    assert str(found).startswith("Trajectory of 3 circuits, n = 2, at 5 times from 0 to 2: 3 got")
    assert len(repr(found)) < 300
    ax = found.plot(1, neurons=[0], quantity="a")
    assert torch.equal(torch.from_numpy(ax.lines[0].get_ydata()), found.a[:, 1, 0])
    with pytest.raises(ValueError, match=r"circuit: got None, expected an index"):
        found.plot()
    with pytest.raises(ValueError, match=r"circuit: got 3"):
        found.plot(3)
    with pytest.raises(ValueError, match=r"quantity: got 'b'"):
        found.plot(0, quantity="b")


def test_it_tells_of_what_diverged() -> None:
    one = torch.ones(1, 1, dtype=DOUBLE)
    circuit = Circuit(torch.cat([0.01 * one, one]), 0.5, -one, one)
    with pytest.warns(SimulationWarning, match=r"1 diverge: \[1\] at t = 6\.") as caught:
        found = simulate(circuit, torch.linspace(0, 9, 4, dtype=DOUBLE))
    assert caught[0].filename == __file__
    assert found.finished.tolist() == [True, False]
    assert found.reached[0] == 9
    assert 6 < found.reached[1] < 6.5
    assert "NaN after t = 6." in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_it_goes_on_from_where_it_ended(method: str) -> None:
    circuit = draw()
    options: dict[str, Any] = {"method": method, "rtol": 1e-9}
    gains = InputGains(lambda t: torch.cos(t), 0.5, DynamicGain(tau=3.0), 1.0)
    whole = simulate(circuit, T, gains=gains, **options)
    first = simulate(circuit, T[:3], gains=gains, **options)
    second = simulate(circuit, T[2:], gains=gains, start=first, **options)
    assert whole.b is not None
    assert second.b is not None
    torch.testing.assert_close(second.y, whole.y[2:], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(second.b, whole.b[2:], rtol=1e-7, atol=1e-9)
    state = circuit.steady_state(tol=1e-12)
    assert (simulate(circuit, T, start=state).y[0] == state.y).all()


@pytest.mark.slow
def test_steps_that_are_computed_again() -> None:
    """Same states and gradients, second ones too, with less kept."""
    circuit, kept = draw(), []
    t = torch.linspace(0, 3, 25, dtype=DOUBLE)
    found = []
    for recompute in (False, True):
        wr = circuit.recurrent_weight
        assert wr is not None
        wr, saved = wr.clone().requires_grad_(), [0]

        def count(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved[0] += tensor.numel()
            return tensor

        made = Circuit(circuit.input_drive, 0.4, wr, circuit.normalization_weight)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            y, _ = simulate(
                made, t, input_drive=lambda s: torch.sin(s), recompute=recompute, rtol=1e-6
            )
        kept.append(saved[0])
        (first,) = torch.autograd.grad(y.square().sum(), wr, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), wr)
        found.append((y.detach(), first.detach(), second))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.1 * kept[0]


@pytest.mark.slow
def test_it_stops_where_it_has_settled() -> None:
    """Not at the one that circles, nor beside an unstable fixed point."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    quiet = Circuit(one, 0.5, 0.5 * one, one)
    t = torch.linspace(0, 100, 21, dtype=DOUBLE)
    d = one.clone().requires_grad_()
    found = simulate(Circuit(d, 0.5, 0.5 * one, one), t, stop_when_settled=True)
    state = quiet.steady_state(tol=1e-13)
    assert 0 < found.settled.item() < 60
    torch.testing.assert_close(found.y[-1], state.y, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.y, simulate(quiet, t, rtol=1e-10).y, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.y[-1].sum(), d)
    e = torch.full_like(one, 1e-5)
    ends = [Circuit(one + s * e, 0.5, 0.5 * one, one).steady_state(tol=1e-14).y for s in (1, -1)]
    torch.testing.assert_close(gradient, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=0)
    # On a fixed point that is not stable nothing settles: wr = 2 has three (theorem 5.2).
    bistable = Circuit(0.01 * one, 0.05, 2.0 * one, one)
    points = fixed_points_2d(bistable)
    (which,) = (~points.y.isnan() & ~points.stable).flatten().nonzero()
    start = (points.y.reshape(-1, 1)[which], points.a.reshape(-1, 1)[which])
    left = simulate(bistable, vector(0.0, 0.1, 0.2), start=start, stop_when_settled=True)
    assert left.settled.isnan().all()


MISTAKES = [
    ({"input_drive": torch.ones(4, 2, dtype=DOUBLE)}, ValueError, r"input_drive: got shape \(4, 2"),
    ({"input_drive": torch.ones(5, 7, dtype=DOUBLE)}, ValueError, r"input_drive: got shape \(5, 7"),
    ({"input_drive": torch.ones(5, 7, 2, dtype=DOUBLE)}, ValueError, r"leading dimensions: got"),
    ({"input_drive": torch.ones(5, 2)}, ValueError, r"input_drive: got torch\.float32"),
    ({"input_drive": 1.0}, TypeError, r"input_drive: got float"),
    ({"input_drive": lambda t: 1.0}, TypeError, r"input_drive: the function returned float"),
    ({"input_drive": lambda t: torch.ones(3).double()}, ValueError, r"returned shape \(3,\)"),
    ({"input_drive": (T + 1, torch.ones(5, 2).double())}, ValueError, r"\[0\]: got times from 1"),
    ({"input_drive": (T.flip(0), torch.ones(5, 2).double())}, ValueError, r"increasing times"),
    ({"inhibitory_drive": torch.zeros(5, 2).double()}, ValueError, r"inhibitory_drive: .*positive"),
    ({"interpolation": "cubic"}, ValueError, r"interpolation: got 'cubic'"),
    ({"jumps": 1.0}, TypeError, r"jumps: got float"),
    ({"jumps": ["a"]}, TypeError, r"jumps: got 'a'"),
    ({"jumps": torch.ones(7, 1)}, ValueError, r"jumps: got shape \(7, 1\)"),
    ({"jumps": [math.nan]}, ValueError, r"jumps: got nan"),
    ({"start": "there"}, TypeError, r"start: got 'there'"),
    ({"start": "rest", "y0": torch.zeros(2)}, ValueError, r"start: got one beside"),
    ({"gains": 1.0}, TypeError, r"gains: got float"),
    (
        {"gains": InputGains(torch.sin, 1.0), "input_drive": torch.sin},
        ValueError,
        r"input_drive: got one beside gains",
    ),
    (
        {"gains": InputGains(torch.sin, 1.0, DynamicGain(torch.eye(2).double()))},
        ValueError,
        r"gains\.input_gain\.weight_x: got one without gains\.x",
    ),
    (
        {"gains": InputGains(torch.sin, 1.0, DynamicGain(weight_y=torch.ones(3, 2).double()))},
        ValueError,
        r"gains\.input_gain\.weight_y: got shape \(3, 2\)",
    ),
    ({"gains": InputGains(torch.sin, -1.0)}, ValueError, r"gains\.semisaturation: .*positive"),
    (
        {"stop_when_settled": True, "input_drive": torch.sin},
        ValueError,
        r"stop_when_settled: got True with input that changes",
    ),
    ({"recompute": True, "method": "scipy_solver"}, ValueError, r"method: got 'scipy_solver'"),
    ({"recompute": 1}, TypeError, r"recompute: got 1"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulate(draw(), T, **options)
