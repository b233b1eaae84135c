"""Trajectories in time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, MODELS

from deq_organics import Circuit, simulate


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_it_converges_to_the_steady_state(
    parameters: Callable[..., dict[str, Any]], exponent: float, rectified: bool
) -> None:
    circuit = Circuit(**parameters((3,), 3, exponent=exponent, rectified=rectified))
    y, a = simulate(circuit, torch.tensor([0.0, 300.0]), rtol=1e-7, atol=1e-9)
    state = circuit.steady_state(tol=1e-12)
    torch.testing.assert_close(y[-1], state.y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a[-1], state.a, rtol=1e-4, atol=1e-5)


def test_it_starts_at_rest(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((2, 3), 4)
    y, a = simulate(batch, torch.linspace(0, 1, 5))
    assert y.shape == a.shape == (5, 2, 3, 4)
    assert (y[0] == 0).all()
    assert torch.equal(a[0], batch.inhibitory_drive.expand(2, 3, 4))
    assert y.dtype == DOUBLE


def test_it_starts_where_it_is_told(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((3,), 4)
    y0, a0 = torch.ones(4, dtype=DOUBLE), torch.full((3, 4), 2.0, dtype=DOUBLE)
    y, a = simulate(batch, torch.linspace(0, 1, 2), y0, a0)
    assert torch.equal(y[0], y0.expand(3, 4))
    assert torch.equal(a[0], a0)


def test_a_steady_state_does_not_move(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((3,), 4)
    state = batch.steady_state(tol=1e-13)
    y, a = simulate(batch, torch.linspace(0, 10, 3), state.y, state.a)
    torch.testing.assert_close(y[-1], state.y, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a[-1], state.a, rtol=1e-6, atol=1e-8)


def test_time_is_in_the_unit_of_tau(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((3,), 3)
    t = torch.linspace(0, 2, 5, dtype=DOUBLE)
    slow, fast = (
        simulate(Circuit(**arguments, tau_y=s, tau_a=2 * s), s * t)[0] for s in (1.0, 0.01)
    )
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-7)


def test_it_differentiates(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((2,), 2)
    wr = arguments["recurrent_weight"].requires_grad_()
    tau = torch.full((2,), 0.5, dtype=DOUBLE, requires_grad=True)
    y, _ = simulate(Circuit(**arguments, tau_y=tau), torch.linspace(0, 1, 2), method="rk4")
    grads = torch.autograd.grad(y[-1].sum(), (wr, tau))
    assert all((g != 0).any() for g in grads)


@pytest.mark.slow
def test_other_methods(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((2,), 2)
    t = torch.linspace(0, 1, 101)
    exact = simulate(batch, t, rtol=1e-9, atol=1e-11)[0]
    torch.testing.assert_close(simulate(batch, t, method="rk4")[0], exact, rtol=1e-6, atol=1e-8)
