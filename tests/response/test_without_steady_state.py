"""Spectra and covariances where a circuit has no stable steady state: NaN, and said."""

from collections.abc import Callable

import pytest
import torch
from _circuits import DOUBLE, POOL, vector

from deq_organics import (
    Circuit,
    SteadyState,
    SteadyStateWarning,
    check_stability,
    cross_spectrum,
    fixed_points_2d,
    stationary_covariance,
    transfer_function,
)

FREQUENCY = torch.linspace(0, 2, 9, dtype=DOUBLE)


@pytest.mark.slow
def test_circuits_without_a_steady_state_are_nan(counterexample: Callable[..., Circuit]) -> None:
    """One bad circuit changes no other, and has no gradient; they share their weights."""
    bad = counterexample()
    drive = torch.cat([bad.input_drive, vector((0.1,))]).requires_grad_()
    wr, w = bad.recurrent_weight.clone().requires_grad_(), POOL[:1, :1].clone().requires_grad_()
    circuit = Circuit(drive, 0.5, wr, w)
    with pytest.warns(SteadyStateWarning, match=r"1 of 2 circuits \(1: no steady state; 0"):
        density = cross_spectrum(circuit, FREQUENCY, noise_a=0.1).density
    with pytest.warns(SteadyStateWarning, match="no steady state"):
        state = circuit.steady_state(tol=1e-13)
    with pytest.warns(SteadyStateWarning):
        covariance = stationary_covariance(circuit, state=state)
    with pytest.warns(SteadyStateWarning):
        assert transfer_function(circuit, FREQUENCY, state=state)[0].isnan().all()
    assert density[0].isnan().all()
    assert covariance[0].isnan().all()
    good = Circuit(drive[1], 0.5, wr, w)
    alone = cross_spectrum(good, FREQUENCY, noise_a=0.1).density
    torch.testing.assert_close(density[1], alone)
    total = density[1].real.sum() + covariance[1].sum()
    expected = alone.real.sum() + stationary_covariance(good).sum()
    found = torch.autograd.grad(total, (drive, wr, w))
    for one, other in zip(found, torch.autograd.grad(expected, (drive, wr, w)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["warn", "ignore"])
@pytest.mark.filterwarnings("ignore:no steady state")
def test_a_given_state_that_is_none_is_nan(
    counterexample: Callable[..., Circuit], on_failure: str
) -> None:
    circuit = counterexample(2)
    state = circuit.steady_state(on_failure=on_failure)
    with pytest.warns(SteadyStateWarning, match=r"2 of 2 circuits \(2: no steady"):
        found = cross_spectrum(circuit, FREQUENCY, state=state)
    assert found.power.isnan().all()
    assert found.coherence().isnan().all()
    assert found.phase().isnan().all()
    assert "without a stable steady state: 2" in str(found)


def test_an_unstable_fixed_point_is_nan() -> None:
    """With ``wr = 2`` Eq. 16 has three fixed points here, of which one is stable."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    circuit = Circuit(torch.full((3, 1), 0.1, dtype=DOUBLE), 0.01, 2.0 * one, one)
    points = fixed_points_2d(circuit)
    y, a = points.y[0].unsqueeze(-1), points.a[0].unsqueeze(-1)
    torch.testing.assert_close(circuit.vector_field(y, a)[0], torch.zeros_like(y))
    good = torch.ones(3, dtype=torch.bool)
    state = SteadyState(y, a, y.relu() ** 2, good, 0.0 * y[:, 0], good.int(), good.int())
    stable = check_stability(circuit, state).stable
    assert int(stable.sum()) == 1
    with pytest.warns(SteadyStateWarning, match=r"2 of 3 circuits \(0: .*; 2: an unstable"):
        found = cross_spectrum(circuit, FREQUENCY, state=state)
    assert torch.equal(found.power.isnan().all(-1).all(-1), ~stable)
    assert torch.equal(found.power.isnan().any(-1).any(-1), ~stable)
