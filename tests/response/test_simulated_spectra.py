"""Spectra against simulations of the noisy nonlinear circuit, at every frequency."""

import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from scipy import signal, stats
from torch import Tensor

from deq_organics import Circuit, CrossSpectrum, cross_spectrum

COPIES = 1024
FAMILY_WISE_ERROR = 1e-3


class Experiment(NamedTuple):
    """A circuit and how to record it.

    By the scheme's exact linear statistics, step, window and sampling together bias no bin by
    more than 0.6 % of the spectrum; the narrowest band of a power is 14 % wide to each side.
    """

    circuit: Circuit
    noise_y: float | Tensor
    noise_a: float | Tensor
    step: float
    samples: int
    highest: float


EXPERIMENTS = {
    "overdamped": Experiment(
        Circuit(vector(0.3, 0.2), 1.0, None, POOL, tau_a=0.4), 1e-3, 2e-3, 0.03, 2000, 0.6
    ),
    "resonant": Experiment(
        Circuit(vector(1.0, 0.8), 0.1, None, POOL, tau_y=10.0), 1e-3, 3e-4, 0.125, 4000, 0.24
    ),
    "three neurons": Experiment(
        Circuit(
            vector(0.5, 0.3, -0.4),
            vector(0.3, 0.4, 0.5),
            random_parameters((), 3, seed=4)["recurrent_weight"],
            vector((1.0, 0.3, 0.1), (0.2, 1.0, 0.5), (0.4, 0.2, 0.8)),
            tau_y=vector(1.0, 1.5, 2.0),
            tau_a=vector(1.2, 0.8, 1.6),
            exponent=3.0,
        ),
        vector(1e-3, 5e-4, 7e-4),
        vector(4e-4, 3e-4, 6e-4),
        0.06,
        2000,
        0.35,
    ),
}


def record(experiment: Experiment) -> np.ndarray:
    """Deviations from rest, ``(2n, COPIES, samples)``, by the stochastic Heun scheme."""
    circuit, noise_y, noise_a, step, samples, _ = experiment
    n, generator = circuit.n, torch.Generator().manual_seed(0)
    state = circuit.steady_state(tol=1e-13)
    rest = torch.cat([state.y, state.a])
    noise = torch.cat([torch.as_tensor(s, dtype=DOUBLE).expand(n) for s in (noise_y, noise_a)])

    def flow(x: Tensor) -> Tensor:
        return torch.cat(circuit.vector_field(*x.split(n, -1)), -1)

    burn_in = samples // 4  # at least 12 of the slowest time constants
    x = rest.expand(COPIES, 2 * n)
    found = torch.empty(samples, COPIES, 2 * n)  # single precision halves the time of the FFTs
    for index in range(-burn_in, samples):
        kick = torch.randn(COPIES, 2 * n, generator=generator)
        kick = kick * noise * math.sqrt(step)
        slope = flow(x)
        x = x + 0.5 * step * (slope + flow(x + step * slope + kick)) + kick
        if index >= 0:
            found[index] = x - rest
    return found.permute(2, 1, 0).contiguous().numpy()


@cache
def estimate(name: str) -> tuple[Tensor, np.ndarray]:
    """Frequencies and the mean of every pair's periodogram, ``(F, 2n, 2n)``, by scipy."""
    experiment = EXPERIMENTS[name]
    x = record(experiment)
    options = {
        "fs": 1 / experiment.step,
        "window": "hann",
        "nperseg": experiment.samples,
        "noverlap": 0,  # one segment a copy: COPIES independent ones
        "detrend": False,  # so that no bin has to be left out; the mean is known
    }
    size = len(x)
    frequency, _ = signal.welch(x[0, 0], **options)
    frequency = frequency[frequency <= experiment.highest]
    mean = np.empty((len(frequency), size, size), complex)
    for i in range(size):
        for j in range(i, size):
            pair = (x[i],) if i == j else (x[i], x[j])
            density = (signal.welch if i == j else signal.csd)(*pair, **options)[1]
            mean[:, i, j] = density[:, : len(frequency)].mean(0)
            mean[:, j, i] = mean[:, i, j].conj()
    return torch.from_numpy(frequency), mean


def deviations(mean: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Each deviation of the estimate in units of its band's half-width: above 1 is outside.

    ``(F, 2n, 2n)``: the diagonal has the powers, whose estimates follow a chi-square law; the
    upper triangle the real and the lower the imaginary parts of the pairs, for ``COPIES``
    segments nearly Gaussian.
    """
    bins, size, _ = mean.shape
    level = FAMILY_WISE_ERROR / mean.size / 2
    # Complex Gaussian amplitudes have two degrees of freedom, real ones (f = 0) have one, and in
    # the first bin the Hann window correlates an amplitude with its conjugate by 1/6.
    freedom = np.full((bins, 1), 2.0 * COPIES)
    freedom[:2, 0] = COPIES, 2 * COPIES / (1 + 1 / 36)
    power, error = np.einsum("fii->fi", density).real, mean - density
    found = np.empty(mean.shape)
    ratio = np.einsum("fii->fi", error).real / power
    lower, upper = (stats.chi2.ppf(p, freedom) / freedom - 1 for p in (level, 1 - level))
    np.einsum("fii->fi", found)[:] = ratio / np.where(ratio < 0, lower, upper)
    width = stats.norm.isf(level) / np.sqrt(freedom)
    first, second = np.triu_indices(size, 1)
    both = power[:, first] * power[:, second]
    pair, error = density[:, first, second], error[:, first, second]
    tilt = pair.real**2 - pair.imag**2
    found[:, first, second] = np.abs(error.real) / np.sqrt(both + tilt) / width
    found[:, second, first] = np.abs(error.imag) / np.sqrt(both - tilt) / width
    return found


def theory(name: str, circuit: Circuit | None = None, **changes: Any) -> CrossSpectrum:
    experiment = EXPERIMENTS[name]
    noise = {"noise_y": experiment.noise_y, "noise_a": experiment.noise_a, **changes}
    return cross_spectrum(circuit or experiment.circuit, estimate(name)[0], **noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_simulated_circuits_have_these_spectra(name: str) -> None:
    assert deviations(estimate(name)[1], theory(name).density.numpy()).max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_band_rejects_wrong_spectra(name: str) -> None:
    mean, (circuit, noise_y, *_) = estimate(name)[1], EXPERIMENTS[name]
    wrong = {
        "tau_a 10 % off": theory(name, replace(circuit, tau_a=1.1 * circuit.tau_a)).density,
        "noise 10 % off": theory(name, noise_y=1.1 * noise_y).density,
        "phase of the other sign": theory(name).density.conj().resolve_conj(),
        "two-sided": theory(name, sided="two").density,
    }
    found = {mistake: deviations(mean, wrong[mistake].numpy()).max() for mistake in wrong}
    assert min(found.values()) > 1, found


@pytest.mark.slow
def test_the_circuits_are_what_they_are_called() -> None:
    def eigenvalues(name: str) -> Tensor:
        circuit = EXPERIMENTS[name].circuit
        state = circuit.steady_state()
        return torch.linalg.eigvals(circuit.jacobian(state.y, state.a))

    assert (eigenvalues("overdamped").imag == 0).all()
    assert (eigenvalues("resonant").imag != 0).all()
    frequency, power = estimate("resonant")[0], theory("resonant", sided="two").power[:, :2]
    assert ((frequency[power.argmax(0)] - 0.05).abs() < 0.01).all()
    assert (power.amax(0) > 1.2 * power[0]).all()


@pytest.mark.slow
def test_summary() -> None:
    found = theory("resonant")
    text = str(found)
    assert text.startswith("CrossSpectrum of 1 circuits, n = 2, one-sided, at 121 frequencies")
    assert "power of y peaks at: max 0.052, median 0.048, min 0.048 (cycles/time)" in text
    assert "peak above the lowest frequency in 2 of 2 y" in text
    assert "above the lowest frequency in 0 of 2 y" in str(theory("overdamped"))
