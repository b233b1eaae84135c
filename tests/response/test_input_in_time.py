"""Input that changes in time: against solutions in closed form and scipy's Radau."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, vector
from torch import Tensor

import input_in_time
from deq_organics import Circuit, DynamicGain, InputGains, draw_circuits, simulate

METHODS = ("dopri5", "dopri8", "rodas5p", "scipy_solver")
DECAY, TAU = vector(0.4, 1.7, 3.0), 0.5


def linear() -> Circuit:
    """Three circuits without normalization, ``TAU y' = -DECAY y + d``: ``a`` stays at 0.25."""
    wr = (2.0 * (1.0 - DECAY)).reshape(3, 1, 1)
    return Circuit(torch.ones(3, 1, dtype=DOUBLE), 0.25, wr, torch.zeros(1, 1, dtype=DOUBLE), TAU)


def after(start: Tensor, span: Tensor, drive: Tensor, rise: Tensor) -> Tensor:
    """The solution ``span`` later, for a drive ``drive + rise * time``."""
    fade = (-DECAY / TAU * span).exp()
    lag = TAU / DECAY
    at_begin = (drive - rise * lag) / DECAY
    return (start - at_begin) * fade + at_begin + rise * span / DECAY


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interpolation", ["linear", "previous"])
def test_sampled_input_has_its_exact_response(method: str, interpolation: str) -> None:
    times = vector(0.0, 0.3, 1.1, 1.6, 2.0, 3.0)
    values = torch.randn(6, 3, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    values[2:4] = values[1]  # A stretch in which it does not change.
    expected = [torch.zeros(3, dtype=DOUBLE)]
    for begin in range(5):
        span, drive = times[begin + 1] - times[begin], values[begin, :, 0]
        rise = (values[begin + 1, :, 0] - drive) / span
        rise = rise if interpolation == "linear" else torch.zeros_like(rise)
        expected.append(after(expected[-1], span, drive, rise))
    given: dict[str, Any] = {"method": method, "interpolation": interpolation, "rtol": 1e-7}
    found = simulate(linear(), times, input_drive=values, **given)
    torch.testing.assert_close(found.y[..., 0], torch.stack(expected), rtol=1e-6, atol=1e-7)
    ends = simulate(linear(), times[[0, 5]], input_drive=(times, values), **given)
    torch.testing.assert_close(ends.y[1], found.y[5], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "rk4"])
@pytest.mark.parametrize("inclusive", [True, False])
def test_switches_are_met_exactly(method: str, inclusive: bool) -> None:
    """A pulse much shorter than the steps, at times of each circuit's own."""
    on = vector((70.0,), (72.5,), (74.3,))
    off = on + 0.01

    def pulse(t: Tensor) -> Tensor:
        shown = (t >= on) & (t < off) if inclusive else (t > on) & (t <= off)
        return torch.where(shown, 50.0, 0.0).to(DOUBLE)

    t = vector(0.0, 75.0, 76.0)
    jumps, step = torch.cat([on, off], -1), {"step_size": 0.5}
    options = step if method == "rk4" else None
    found = simulate(
        linear(), t, input_drive=pulse, jumps=jumps, method=method, rtol=1e-9, options=options
    )
    zero, strong = torch.zeros(3, dtype=DOUBLE), torch.full((3,), 50.0, dtype=DOUBLE)
    peak = after(zero, vector(0.01), strong, zero)
    expected = after(peak, 75.0 - off[:, 0], zero, zero)
    # Steps of half a time unit are long for all but the first circuit.
    rows = slice(0, 1) if method == "rk4" else slice(None)
    close = 1e-2 if method == "rk4" else 1e-6
    torch.testing.assert_close(found.y[1, rows, 0], expected[rows], rtol=close, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "seed"), [
    ("switching", "dopri5", 4),
    ("modulated", "rodas5p", 1),
    ("gains", "dopri5", 2),
    ("gains", "rodas5p", 5),
])  # fmt: skip
def test_it_agrees_with_scipy(kind: str, method: str, seed: int) -> None:
    """Two of the circuits of benchmarks/input_in_time.py."""
    given = input_in_time.draw(kind, 2, seed)
    times = torch.linspace(0, 1.7, 4, dtype=DOUBLE)
    found = input_in_time.simulated(given, times, method=method, rtol=1e-7)
    assert np.isfinite(found.y.numpy()).all()
    n = found.y.shape[-1]
    states = torch.cat([*found, *(x for x in (found.b, found.b0) if x is not None)], -1)
    expected = input_in_time.reference(given, 1, np.array([*times.tolist(), 2.9]))[:-1]
    assert states.shape[-1] == expected.shape[-1] == (4 * n if kind == "gains" else 2 * n)
    size = np.abs(expected).max(0)
    assert (np.abs(states[:, 1].numpy() - expected) / size).max() < 1e-6


@pytest.mark.slow
def test_a_circuit_does_not_depend_on_its_batch() -> None:
    given = input_in_time.draw("switching", 4, 1)
    times = torch.linspace(0, 3, 3, dtype=DOUBLE)
    together = input_in_time.simulated(given, times)
    for row in (0, 3):
        alone = input_in_time.simulated(input_in_time.alone(given, row), times)
        torch.testing.assert_close(alone.y[:, 0], together.y[:, row], rtol=1e-13, atol=1e-15)


def test_one_circuit_sees_many_stimuli() -> None:
    one = Circuit(torch.rand(3, dtype=DOUBLE), 0.5, None, torch.rand(3, 3, dtype=DOUBLE))
    t = torch.linspace(0, 2, 3, dtype=DOUBLE)
    stimuli = torch.rand(3, 5, 3, dtype=DOUBLE)
    assert simulate(one, t, input_drive=stimuli).y.shape == (3, 5, 3)
    assert simulate(one, t, input_drive=lambda s: stimuli[0] * s).a.shape == (3, 5, 3)


def driven(method: str, interpolation: str = "linear") -> Callable[..., Tensor]:
    """Of weights, an amplitude, samples, a switching time and the times: a number."""
    circuit = draw_circuits(2, 2, generator=torch.Generator().manual_seed(0))

    def function(wr: Tensor, height: Tensor, samples: Tensor, on: Tensor, t: Tensor) -> Tensor:
        made = Circuit(circuit.input_drive, 0.3, wr, circuit.normalization_weight, 0.5)
        wave: Callable[[Tensor], Tensor] = lambda s: (  # noqa: E731
            height * torch.sin(2 * s + 1) + torch.where(s >= on.detach(), 1.5, 0.0)
        )
        grid = vector(-0.5, 0.7, 2.0)
        found = simulate(
            made,
            t,
            input_drive=wave,
            inhibitory_drive=(grid, samples),
            interpolation=interpolation,
            jumps=[on],
            method=method,
            rtol=0.9,
            options={"first_step": 0.05, "max_step": 0.05},
        )
        return found.y.sin().sum() + (found.a * t[:, None, None]).sum()

    return function


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_gradients_against_finite_differences(method: str) -> None:
    """By a weight, what is in a function, samples, the time of a switch, and all times of ``t``.

    The steps have one length, so that differences see no change of their number.
    """
    wr = draw_circuits(2, 2, generator=torch.Generator().manual_seed(0)).recurrent_weight
    assert wr is not None
    inputs = (
        wr,
        vector(0.7, -0.4),
        vector((0.2, 0.3), (0.5, 0.2), (0.1, 0.4)),
        torch.tensor(0.6, dtype=DOUBLE),
        vector(0.0, 0.4, 1.0),
    )
    leaves = [part.clone().requires_grad_() for part in inputs]
    function = driven(method)
    found = torch.autograd.grad(function(*leaves), leaves)
    generator = torch.Generator().manual_seed(3)
    for place, gradient in enumerate(found):
        direction = torch.randn(gradient.shape, dtype=DOUBLE, generator=generator)
        if place == 3:
            direction = torch.ones_like(direction)
        ends = []
        for sign in (1, -1):
            moved = [part.clone() for part in inputs]
            moved[place] = moved[place] + sign * 1e-4 * direction
            ends.append(function(*moved))
        slope = float(ends[0] - ends[1]) / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def gains(circuit: Circuit, weights: Tensor, **options: Any) -> InputGains:
    by_x, by_y, by_a, other = weights
    return InputGains(
        lambda t: torch.sin(t) + circuit.input_drive,
        0.6,
        DynamicGain(by_x, by_y, by_a, tau=0.7),
        DynamicGain(weight_y=other, tau=2.0, start=0.8),
        x=lambda t: torch.cat([t, torch.cos(t)], -1),
        **options,
    )


@pytest.mark.slow
def test_gradients_by_the_parameters_of_gains() -> None:
    circuit = draw_circuits(1, 2, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(4, 2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    t = vector(0.0, 0.5)

    def function(weights: Tensor) -> Tensor:
        found = simulate(circuit, t, gains=gains(circuit, weights), method="rodas5p", rtol=1e-8)
        assert found.b is not None
        assert found.b0 is not None
        return found.y[1].sum() + found.b[1].sum() + found.b0[1].sum()

    leaf = weights.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    direction = torch.ones_like(weights)
    with torch.no_grad():
        rise = function(weights + 1e-4 * direction) - function(weights - 1e-4 * direction)
    assert float((found * direction).sum()) == pytest.approx(float(rise) / 2e-4, rel=1e-5)


def test_gains_that_do_not_move_are_those_of_the_circuit() -> None:
    z, b, b0, sigma = (torch.rand(2, 3, dtype=DOUBLE) + 0.2 for _ in range(4))
    weight = torch.rand(3, 3, dtype=DOUBLE)
    circuit = Circuit.from_gains(z, b, b0, sigma, 0.5 * weight, weight)
    t = vector(0.0, 1.0, 5.0)
    same = simulate(circuit, t, gains=InputGains(lambda _: z, sigma, b, b0))
    torch.testing.assert_close(same.y, simulate(circuit, t).y, rtol=1e-5, atol=1e-7)
    assert same.b is None
    assert same.b0 is None
    # The gain rests where Eq. 17 says: at sigmoid(Wx x), whatever y is.
    moving = InputGains(lambda _: z, sigma, DynamicGain(weight), b0, x=lambda _: z)
    found = simulate(circuit, vector(0.0, 60.0), gains=moving)
    assert found.b is not None
    torch.testing.assert_close(found.b[-1], torch.sigmoid(z @ weight.mT), rtol=1e-5, atol=1e-6)


def test_a_function_that_fails_is_named() -> None:
    circuit, t = linear(), vector(0.0, 1.0)
    with pytest.raises(
        ValueError, match=r"input_drive: the function returned nan at t = (1|0\.[5-9])"
    ):
        simulate(circuit, t, input_drive=lambda s: torch.where(s > 0.5, math.nan, 1.0).to(DOUBLE))
    with pytest.raises(ValueError, match=r"inhibitory_drive: the function returned -.* positive"):
        simulate(circuit, t, inhibitory_drive=lambda s: 0.5 - s)
