"""Integrators on a differential equation that is not a circuit: orders, interpolants, failures."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, vector
from scipy.integrate import solve_ivp
from torch import Tensor

from deq_organics.integration import METHODS, Outcome, StepControl, integrate

# Of the local errors of a step, of its estimate, and of the states within it.
ORDERS = {
    "euler": (2, None, 2),
    "midpoint": (3, None, 3),
    "heun2": (3, None, 3),
    "heun3": (4, None, 4),
    "rk4": (5, None, 4),
    "adaptive_heun": (3, 2, 3),
    "fehlberg2": (3, 2, 3),
    "bosh3": (4, 3, 4),
    "dopri5": (6, 5, 5),
    "dopri8": (9, 8, None),
    "rodas5p": (6, 5, 5),
}


class Field:
    """A nonlinear equation of two unknowns, which depends on time where that is asked for."""

    def __init__(self, forced: bool) -> None:
        self.forced = forced

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        y, a = state.chunk(2, -1)
        force = torch.cos(3 * time).unsqueeze(-1) if self.forced else 0.0
        return torch.cat([a * y.cos() + force, -y * a.square() + torch.sin(y)], -1)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        free = Field(False)  # What forces it does not depend on the state.
        return torch.stack([torch.func.jacrev(lambda x: free(time[:1], x))(x) for x in state])

    def select(self, index: Tensor) -> "Field":
        return self


START = vector((0.3, 0.8), (1.0, -0.5))


def exact(field: Field, time: float, span: float) -> Tensor:
    def flow(t: float, x: np.ndarray) -> np.ndarray:
        return field(vector(t), torch.from_numpy(x).unsqueeze(0))[0].numpy()

    ends = [
        solve_ivp(flow, (time, time + span), x.numpy(), "DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
        for x in START
    ]
    return torch.stack([torch.from_numpy(end) for end in ends])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_orders(name: str) -> None:
    """Halving a step divides each error by two to the power of its order, at least nearly."""
    method, field = METHODS[name], Field(forced=name != "rodas5p")
    time, errors = vector(0.2, 0.2), []
    for length in (0.2, 0.1):
        h = torch.full((2,), length, dtype=DOUBLE)
        step = method.step(field, time, START, field(time, START), h)
        within = method.interpolate(step, vector(0.37, 0.37))
        errors.append(
            (
                (step.end - exact(field, 0.2, length)).abs().max(),
                math.nan if step.error is None else step.error.abs().max(),
                (within - exact(field, 0.2, 0.37 * length)).abs().max(),
            )
        )
        torch.testing.assert_close(step.slope, field(time + h, step.end))
        torch.testing.assert_close(method.interpolate(step, vector(0.0, 1.0))[0], START[0])
        torch.testing.assert_close(method.interpolate(step, vector(0.0, 1.0))[1], step.end[1])
    for order, coarse, fine in zip(ORDERS[name], *errors, strict=True):
        if order is not None:
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.7)
    assert (method.error_order is None) == (ORDERS[name][1] is None)


@pytest.mark.slow
def test_rodas5p_keeps_its_order_where_the_field_depends_on_time() -> None:
    """And has none without the derivative by the time, which ``autonomous`` leaves out."""

    class Claim(Field):
        autonomous = True

    method, time, errors = METHODS["rodas5p"], vector(0.2, 0.2), []
    for length in (0.1, 0.05):
        h, ends = torch.full((2,), length, dtype=DOUBLE), []
        for field in (Field(True), Claim(True)):
            step = method.step(field, time, START, field(time, START), h)
            within = method.interpolate(step, vector(0.37, 0.37))
            assert step.error is not None
            truth = exact(field, 0.2, length)
            inside = (within - exact(field, 0.2, 0.37 * length)).abs().max()
            ends += [(step.end - truth).abs().max(), step.error.abs().max(), inside]
        errors.append(ends)
    coarse, fine = errors
    orders = [math.log2(one / other) for one, other in zip(coarse, fine, strict=True)]
    # At least: of so smooth a field the estimate is better.
    assert all(found > order - 0.7 for found, order in zip(orders[:3], (6, 5, 5), strict=True))
    assert orders[3] < 4


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_no_length_stays_exactly(name: str) -> None:
    field, time = Field(False), vector(0.0, 0.0)
    step = METHODS[name].step(field, time, START, field(time, START), vector(0.0, 0.1))
    assert torch.equal(step.end[0], START[0])
    assert not torch.equal(step.end[1], START[1])


class Growth(NamedTuple):
    """``dx/dt = rate x^power``, per sample; from 1 and with power 2 it blows up at ``1 / rate``."""

    rate: Tensor
    power: Tensor

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self.rate * state.abs().pow(self.power) * state.sign()

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        slope = self.rate * self.power * state.abs().pow(self.power - 1)
        return torch.diag_embed(slope)

    def select(self, index: Tensor) -> "Growth":
        return Growth(self.rate[index], self.power[index])


def control(size: int, **options: Any) -> StepControl:
    ones = torch.ones(size, 1, dtype=DOUBLE)
    return StepControl(1e-6, 1e-8 * ones, ones, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].error_order])
def test_each_sample_ends_as_it_must(name: str) -> None:
    """The first two blow up (at t = 2 and 5), the third grows, the fourth decays."""
    field = Growth(vector((0.5,), (0.2,), (0.3,), (-1.0,)), vector((2.0,), (2.0,), (1.0,), (1.0,)))
    grid = torch.linspace(0, 10, 21, dtype=DOUBLE)
    start = torch.ones(4, 1, dtype=DOUBLE)
    # Methods of low order take many steps to a singularity where the tolerance is small; Fehlberg's
    # estimate is of the error of its first-order half, 1/256 of the difference.
    rtol = {"adaptive_heun": 1e-3, "bosh3": 1e-3, "fehlberg2": 1e-5}.get(name, 1e-7)
    close = 3e3 * rtol if name == "fehlberg2" else 20 * rtol
    found = integrate(field, start, grid, METHODS[name], control(4)._replace(rtol=rtol))
    assert found.outcome.tolist() == [Outcome.DIVERGED] * 2 + [Outcome.FINISHED] * 2
    torch.testing.assert_close(found.time, vector(2.0, 5.0, 10.0, 10.0), rtol=0.02, atol=0)
    states = found.states.squeeze(-1)
    for column, until in ((0, 2.0), (1, 5.0)):
        known = grid < until - 0.4
        expected = 1 / (1 - field.rate[column] * grid[known])
        torch.testing.assert_close(states[known, column], expected, rtol=close, atol=0)
        assert states[grid > until + 0.1, column].isnan().all()
    torch.testing.assert_close(states[:, 2], (0.3 * grid).exp(), rtol=close, atol=0)
    torch.testing.assert_close(states[:, 3], (-grid).exp(), rtol=close, atol=close)


def test_steps_that_vanish_where_nothing_diverges() -> None:
    """The slope of ``-sign(x)`` has no solution past zero: neither blown up nor finished."""
    field = Growth(vector((-1.0,)), vector((0.0,)))
    grid = vector(0.0, 2.0)
    strict = StepControl(1e-12, torch.zeros(1, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE))
    found = integrate(field, vector((1.0,)), grid, METHODS["dopri5"], strict)
    assert found.outcome.item() == Outcome.STALLED
    torch.testing.assert_close(found.time, vector(1.0))
    assert found.states[1].isnan().all()


@pytest.mark.slow
def test_steps_are_counted() -> None:
    field = Growth(vector((-1e4,), (-1.0,)), vector((1.0,), (1.0,)))
    start, grid = torch.ones(2, 1, dtype=DOUBLE), vector(0.0, 1.0, 10.0)
    found = integrate(field, start, grid, METHODS["dopri5"], control(2, max_steps=300))
    assert found.outcome.tolist() == [Outcome.TOO_MANY_STEPS, Outcome.FINISHED]
    stiff = integrate(field, start, grid, METHODS["rodas5p"], control(2, max_steps=300))
    assert stiff.outcome.tolist() == [Outcome.FINISHED] * 2
    torch.testing.assert_close(stiff.states[:, 1], found.states[:, 1], rtol=1e-4, atol=1e-7)


def test_the_longest_and_the_first_step() -> None:
    field, grid = Growth(vector((-1.0,)), vector((1.0,))), vector(0.0, 1.0)
    for first, longest, most in ((1.0, 1.0, 9), (0.25, 0.25, 4), (0.25, 0.25, 3)):
        limits = control(1, first_step=first, max_step=longest, max_steps=most)._replace(rtol=0.9)
        found = integrate(field, torch.ones(1, 1, dtype=DOUBLE), grid, METHODS["dopri5"], limits)
        assert found.outcome.item() == (Outcome.FINISHED if most > 3 else Outcome.TOO_MANY_STEPS)
