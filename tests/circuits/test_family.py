"""What is known exactly of the circuits around ORGaNICs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deq_organics import (
    SSN,
    AmplifierCircuit,
    FeedbackArea,
    WilsonCowan,
    check_stability,
    cross_spectrum,
    find_steady_state,
)

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_amplifier_normalizes_exactly() -> None:
    d, w = 0.6 * uniform(20, 4) - 0.3, uniform(4, 4, seed=1)
    c = 0.01 + 0.2 * uniform(20, 4, seed=2)
    found = find_steady_state(AmplifierCircuit(d, c, None, w, alpha=2.0), tol=1e-12)
    u = c + d.square() @ w.T
    torch.testing.assert_close(found["u"], u, rtol=1e-9, atol=0)
    torch.testing.assert_close(found["y"], d / u.sqrt(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["a"], u.sqrt() / (1.0 - u.sqrt()), rtol=1e-9, atol=0)


def test_amplifier_from_gains() -> None:
    z = uniform(3)
    circuit = AmplifierCircuit.from_gains(z, 1.0, 1.0, 0.2, None, uniform(3, 3))
    torch.testing.assert_close(circuit.input_drive, 0.5 * z)
    assert circuit.inhibitory_drive == pytest.approx(0.01)


@pytest.mark.slow
def test_gamma_peak_rises_with_contrast() -> None:
    contrast = torch.tensor((0.1, 0.2, 0.4, 0.8), dtype=DOUBLE)[:, None]
    one = torch.ones(1, 1, dtype=DOUBLE)
    circuit = AmplifierCircuit(0.8 * contrast, 0.001, None, one, 3.0, 5.0, 5.0, 5.0)
    found = find_steady_state(circuit, on_failure="error")
    frequency = torch.linspace(0.001, 0.2, 400, dtype=DOUBLE)
    spectrum: Any = cross_spectrum(circuit, frequency, noise=1.0, state=found)
    power = spectrum.power_of("y")[..., 0]
    peak = frequency[power.argmax(-1)]
    assert bool((peak.diff() > 0).all()), peak


@pytest.mark.slow
@pytest.mark.parametrize("fed", [0.0, 0.1])
def test_feedback_area_normalizes_exactly_whatever_the_feedback(fed: float) -> None:
    z, w = 0.3 + uniform(10, 3), 0.5 * uniform(3, 3, seed=1)
    area = FeedbackArea(
        z, None, w, feedback=fed, semisaturation=0.2, alpha=1.0, epsilon=1e-20, gain=0.4
    )
    found = find_steady_state(area, tol=1e-12, on_failure="error")
    u = (0.2 * 0.4) ** 2 + (0.4 * z).square() @ w.T
    torch.testing.assert_close(found["u"], u, rtol=1e-9, atol=0)
    torch.testing.assert_close(found["y"], 0.4 * z / u.sqrt(), rtol=1e-9, atol=0)
    amplified = (1.0 + 0.5 * fed / found["s"]) / (1.0 - u.sqrt()) - 1.0
    torch.testing.assert_close(found["p"], amplified, rtol=1e-9, atol=0)


def test_ssn_is_supralinear_for_weak_and_sublinear_for_strong_input() -> None:
    contrast = torch.logspace(-1.0, 2.0, 31, dtype=DOUBLE)[:, None]
    weight = torch.tensor(((1.25, 0.65), (1.2, 0.5)), dtype=DOUBLE)
    circuit = SSN(contrast, contrast, weight, gain=0.04)
    found = find_steady_state(circuit, on_failure="error")
    rate = circuit.rates(found["e"])[:, 0]
    exponent = rate.log().diff() / contrast[:, 0].log().diff()
    assert float(exponent[0]) == pytest.approx(2.0, abs=0.1)
    assert float(exponent[-1]) < 1.0


def test_ssn_supersaturates() -> None:
    # Inhibition wins in the end: W_ii - W_ei < 0, so that excitatory rates fall with contrast.
    contrast = torch.logspace(0.0, 3.0, 40, dtype=DOUBLE)[:, None]
    weight = torch.tensor(((1.25, 0.65), (1.2, 0.5)), dtype=DOUBLE)
    circuit = SSN(contrast, contrast, weight, gain=0.04)
    rate = circuit.rates(find_steady_state(circuit, on_failure="error")["e"])[:, 0]
    best = int(rate.argmax())
    assert 0 < best < 39
    assert float(rate[-1]) < 0.9 * float(rate[best])


def test_wilson_cowan_rests_without_drive() -> None:
    none = torch.zeros(3, 2, dtype=DOUBLE)
    weights = [4.0 * uniform(2, 2, seed=seed) for seed in range(4)]
    circuit = WilsonCowan(none, none, *weights)
    found = find_steady_state(circuit)
    assert bool(found.converged.all())
    assert float(found.state.abs().max()) == 0.0
    assert bool(check_stability(circuit, found).stable.all())


def test_arguments_are_checked() -> None:
    z, w = uniform(3), uniform(3, 3)
    with pytest.raises(ValueError, match="normalization_weight: got a smallest"):
        AmplifierCircuit(z, 0.1, None, -w)
    with pytest.raises(ValueError, match=r"weight: got shape \(3, 3\), expected \(\.\.\., 5, 5\)"):
        SSN(z, z[:2], w)
    with pytest.raises(ValueError, match=r"tau: got"):
        FeedbackArea(z, None, w, tau=0.0)
    with pytest.raises(ValueError, match=r"drive_i: got torch\.float32"):
        WilsonCowan(z, z.float(), w, w, w, w)
    assert SSN(z, z, uniform(6, 6)).to(torch.float32).weight.dtype == torch.float32
