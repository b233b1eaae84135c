"""Linear response under noise of every kind, against closed forms and other ways to say it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, random_parameters, vector
from torch import Tensor
from torch.autograd import gradcheck

from deq_organics import (
    Circuit,
    Noise,
    communication_subspace,
    cross_spectrum,
    stationary_covariance,
    transfer_function,
)

F = torch.linspace(0, 1, 6, dtype=DOUBLE)


def some_circuit(batch: tuple[int, ...] = (2,), n: int = 3, seed: int = 0) -> Circuit:
    arguments = random_parameters(batch, n, recurrence="per-circuit", seed=seed)
    arguments["recurrent_weight"] = 0.5 * arguments["recurrent_weight"]
    arguments["tau_y"] = torch.linspace(0.5, 2, n, dtype=DOUBLE)
    return Circuit(**arguments, tau_a=1.5)


def test_white_private_noise_is_what_the_numbers_say() -> None:
    circuit, s, r = some_circuit(), vector(0.3, 0.2, 1.0), 0.4
    noises = [Noise(s), Noise(r, "a")]
    old = cross_spectrum(circuit, F, noise_y=s, noise_a=r)
    new = cross_spectrum(circuit, F, noise=noises)
    torch.testing.assert_close(new.density, old.density, rtol=1e-12, atol=0)
    torch.testing.assert_close(new.coherence(), old.coherence())
    torch.testing.assert_close(
        stationary_covariance(circuit, noise=noises),
        stationary_covariance(circuit, noise_y=s, noise_a=r),
    )


def test_other_ways_to_say_the_same() -> None:
    circuit, generator = some_circuit(), torch.Generator().manual_seed(0)
    factor = torch.randn(6, 6, generator=generator, dtype=DOUBLE)
    expected = stationary_covariance(circuit, noise=Noise(1.0, "state", factor=factor))
    covariance = factor @ factor.mT
    same: list[Any] = [
        Noise(1.0, "state", covariance=covariance),
        Noise(0.5, "state", covariance=4 * covariance.numpy()),
        [Noise(1.0, "state", factor=factor[:, k : k + 1]) for k in range(6)],
    ]
    for noise in same:
        torch.testing.assert_close(stationary_covariance(circuit, noise=noise), expected)
    tau = circuit.tau_y
    drive = stationary_covariance(circuit, noise=Noise(0.3, "input_drive"))
    torch.testing.assert_close(drive, stationary_covariance(circuit, noise=Noise(0.3 / tau)))
    shared = stationary_covariance(circuit, noise=Noise(0.3, shared=True))
    ones = torch.ones(3, 3, dtype=DOUBLE)  # Singular: no Cholesky factor.
    torch.testing.assert_close(
        shared, stationary_covariance(circuit, noise=Noise(0.3, covariance=ones))
    )


def test_spectra_are_filtered_noise() -> None:
    """For every colour, with rates, by the transfer function."""
    circuit = some_circuit()
    state = circuit.steady_state(tol=1e-13)
    h = transfer_function(circuit, F, state=state)
    tau, w = 0.7, 2 * math.pi * F
    noises = [
        Noise(0.3, "input_drive", tau=tau, shared=True),
        Noise(vector(0.1, 0.2, 0.3), density=lambda f: 1 / (1 + f)),
        Noise(0.2, "state", multiplicative=True),
    ]
    found = cross_spectrum(circuit, F, noise=noises, sided="two", state=state)
    shared = torch.cat([0.3 / circuit.tau_y, torch.zeros(3, dtype=DOUBLE)])
    s = (2 * tau / (1 + (w * tau) ** 2))[:, None, None] * torch.outer(shared, shared)
    private = torch.diag(torch.cat([vector(0.1, 0.2, 0.3), torch.zeros(3, dtype=DOUBLE)]) ** 2)
    s = s + (1 / (1 + F))[:, None, None] * private
    rates = torch.cat([state.y.abs() ** 2, state.a.sqrt()], -1)
    s = s + 0.04 * torch.diag_embed(rates)[:, None]
    expected = (h @ (s + 0j) @ h.mH).conj()
    torch.testing.assert_close(found.density, expected)
    samples = replace(noises[1], density=1 / (1 + F))
    again = cross_spectrum(circuit, F, noise=[noises[0], samples, noises[2]], sided="two")
    torch.testing.assert_close(again.density, found.density)


def test_partly_shared_noise_solves_the_lyapunov_equation_with_its_sources() -> None:
    """Of states and Ornstein-Uhlenbeck sources together, in numpy by Kronecker products."""
    circuit, n = some_circuit((), 3), 3
    noise = [Noise(0.3, "input_drive", tau=0.7, shared=True), Noise(0.2, "input_drive", tau=2.5)]
    state = circuit.steady_state(tol=1e-13)
    drift = np.zeros((3 * n + 1, 3 * n + 1))
    drift[: 2 * n, : 2 * n] = circuit.jacobian(state.y, state.a).numpy()
    drift[:n, 2 * n] = 0.3 / circuit.tau_y.numpy()
    drift[:n, 2 * n + 1 :] = np.diag(0.2 / circuit.tau_y.numpy())
    rates = np.array([1 / 0.7, *[1 / 2.5] * n])
    drift[2 * n :, 2 * n :] = -np.diag(rates)
    diffusion = np.diag([*[0.0] * (2 * n), *(2 * rates)])
    one = np.eye(len(drift))
    expected = np.linalg.solve(np.kron(drift, one) + np.kron(one, drift), -diffusion.ravel())
    expected = expected.reshape(drift.shape)[: 2 * n, : 2 * n]
    found = stationary_covariance(circuit, noise=noise).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1e-3, 0.3, 50.0])
def test_a_density_integrates_to_the_covariance_of_the_same_noise(tau: float) -> None:
    circuit = some_circuit()
    noise = Noise(0.3, tau=tau)
    by_density = replace(
        noise, tau=None, density=lambda f: 2 * tau / (1 + (2 * math.pi * f * tau) ** 2)
    )
    torch.testing.assert_close(
        stationary_covariance(circuit, noise=by_density),
        stationary_covariance(circuit, noise=noise),
        rtol=1e-6,
        atol=1e-9,
    )


def test_a_density_without_an_integral_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"noise\.density: the integral .* not converge"):
        stationary_covariance(some_circuit((), 1), noise=Noise(density=lambda f: 1 + f**2))


def test_short_correlation_times_are_white() -> None:
    circuit, tau = some_circuit(), 1e-6
    white = stationary_covariance(circuit, noise=Noise(0.3))
    short = stationary_covariance(circuit, noise=Noise(0.3 / math.sqrt(2 * tau), tau=tau))
    torch.testing.assert_close(short, white, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("quantity", [cross_spectrum, stationary_covariance])
def test_gradcheck(quantity: Callable[..., Any]) -> None:
    circuit = some_circuit((2,), 2)
    leaves = [
        circuit.input_drive.clone().requires_grad_(),
        vector((0.3, 0.1), (0.2, 0.5)).requires_grad_(),
        vector(0.7).requires_grad_(),
        vector((1.0, 0.3), (0.3, 0.8)).requires_grad_(),
    ]

    def function(drive: Tensor, strength: Tensor, tau: Tensor, covariance: Tensor) -> Tensor:
        changed = replace(circuit, input_drive=drive)
        symmetric = 0.5 * (covariance + covariance.mT)
        noise = [
            Noise(strength, "input_drive", tau=tau, multiplicative=True),
            Noise(0.3, "a", covariance=symmetric),
        ]
        if quantity is stationary_covariance:
            return stationary_covariance(changed, noise=noise)
        return torch.view_as_real(cross_spectrum(changed, F[1:3], noise=noise).density)

    assert gradcheck(function, leaves, fast_mode=True)


def test_read_outs() -> None:
    circuit = some_circuit()
    found = cross_spectrum(circuit, F, noise=[Noise(0.3), Noise(0.2, shared=True)])
    w = vector((1.0, -1.0, 0.5), (0.0, 2.0, 1.0))
    both = found.project(w)
    pad = torch.nn.functional.pad(w, (0, 3)) + 0j
    torch.testing.assert_close(both.density, pad @ found.density @ pad.mT)
    named = found.project({"V1": w[0], "V2": w[1].numpy()})
    torch.testing.assert_close(named.density, both.density)
    assert named.coherence("V1", "V2").shape == (2, 6)
    torch.testing.assert_close(named.coherence("V1", "V2"), both.coherence()[..., 0, 1])
    assert "2 read-outs" in str(named)
    one = found.project(torch.eye(6, dtype=DOUBLE)[4])
    torch.testing.assert_close(one.power[..., 0], found.power[..., 4])
    own = found.project({"each circuit its own": torch.stack([w[0], w[1]])})
    torch.testing.assert_close(own.power[1, :, 0], both.power[1, :, 1])
    for bad, message in (
        (torch.ones(4, dtype=DOUBLE), r"weights: got shape \(4,\), .* 3 \(y\) or 6"),
        (torch.ones(5, 2, 3, dtype=DOUBLE), r"weights: .* circuits"),
        ({"V1": torch.ones(5, 3, dtype=DOUBLE)}, r"weights\['V1'\]: .* circuits"),
        ({}, r"weights: got no read-outs"),
    ):
        with pytest.raises(ValueError, match=message):
            found.project(bad)
    with pytest.raises(ValueError, match=r"second: got 'V3', expected 'V1', 'V2'"):
        named.coherence("V1", "V3")
    with pytest.raises(ValueError, match=r"first: got 'V1', expected no name"):
        found.coherence("V1", "V2")


def test_peaks() -> None:
    """Of one damped oscillator, whose power is known."""
    circuit = Circuit(vector(1.0), 0.01, None, torch.ones(1, 1, dtype=DOUBLE), tau_y=10.0)
    frequency = torch.linspace(0.0, 0.2, 401, dtype=DOUBLE)
    found = cross_spectrum(circuit, frequency)
    fine = torch.linspace(0.0, 0.2, 200_001, dtype=DOUBLE)
    state = circuit.steady_state(tol=1e-13)
    (p, q), (r, s) = circuit.jacobian(state.y, state.a).tolist()
    w = 2 * math.pi * fine
    power = 2 * (w**2 + s**2) / ((p * s - q * r - w**2) ** 2 + (w * (p + s)) ** 2)
    peak = found.peak()
    assert float(peak.frequency[0]) == pytest.approx(float(fine[power.argmax()]), abs=1e-5)
    assert float(peak.power[0]) == pytest.approx(float(power.max()), rel=1e-4)
    assert found.peak((0.0, float(peak.frequency[0]) / 2)).frequency[0].isnan()
    with pytest.raises(ValueError, match="band: got"):
        found.peak((0.3, 0.4))


@pytest.mark.parametrize("seed", range(3))
def test_communication_subspace_is_reduced_rank_regression(seed: int) -> None:
    """Against the regression itself: the fitted values' leading directions."""
    generator = np.random.default_rng(seed)
    n, m = 4 + seed, 3
    factor = generator.standard_normal((n + m, n + m))
    c = factor @ factor.T
    beta = np.linalg.solve(c[:n, :n], c[:n, n:])
    _, vectors = np.linalg.eigh(beta.T @ c[:n, :n] @ beta)
    expected = []
    for rank in range(1, m + 1):
        v = vectors[:, -rank:]
        b = beta @ v @ v.T
        left = c[n:, n:] - b.T @ c[:n, n:] - c[n:, :n] @ b + b.T @ c[:n, :n] @ b
        expected.append(1 - np.trace(left) / np.trace(c[n:, n:]))
    found = communication_subspace(torch.from_numpy(c), range(n), range(n, n + m))
    torch.testing.assert_close(found.performance, torch.tensor(expected, dtype=DOUBLE))
    tiny = communication_subspace(1e-20 * torch.from_numpy(c), range(n), range(n, n + m))
    torch.testing.assert_close(tiny.performance, found.performance)
    assert int(found.dimension(1.0)) == m


def test_communication_subspace_per_frequency() -> None:
    circuit = some_circuit((2,), 4)
    spectrum = cross_spectrum(circuit, F, noise=[Noise(0.1), Noise(0.3, shared=True)])
    found = communication_subspace(spectrum, [0, 1, 2], [3])
    assert found.performance.shape == (2, 6, 1)
    only = communication_subspace(spectrum, [0], [3])
    torch.testing.assert_close(only.performance[..., 0], spectrum.coherence()[..., 0, 3])
    # One source for all: everything is predicted, from a singular covariance.
    shared = cross_spectrum(circuit, F, noise=Noise(0.3, shared=True))
    whole = communication_subspace(shared, [0, 1, 2], [3, 7], rank=1)
    torch.testing.assert_close(whole.performance, torch.ones_like(whole.performance))
    for arguments, message in (
        (([0, 1], [1, 2]), r"target: got components of the source, \[1\]"),
        (([0, 9], [1]), r"source: got \[0, 9\]"),
        (([0, 0], [1]), r"source: got \[0, 0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            communication_subspace(spectrum, *arguments)


ONES = torch.ones(3, dtype=DOUBLE)


def float_of(frequency: Tensor) -> Any:
    return float(frequency[0])


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Noise(-1.0), ValueError, "strength: got -1.0"),
    (lambda: Noise(on="z"), ValueError, "on: got 'z'"),
    (lambda: Noise(tau=0.0), ValueError, "tau: got 0.0"),
    (lambda: Noise(tau=1.0, density=torch.ones_like), ValueError, "density: got one beside tau"),
    (lambda: Noise(shared=True, factor=ONES), ValueError, "factor: got it beside shared"),
    (lambda: Noise(density=3.0), TypeError, "density: got float"),  # type: ignore[arg-type]
    (lambda: 1.0, TypeError, "noise: got float, expected a Noise"),
    (lambda: [], ValueError, "noise: got none"),
    (lambda: [Noise(), 2], TypeError, r"noise\[1\]: got int"),
    (lambda: Noise(torch.ones(6, 3, dtype=DOUBLE)), ValueError, r"noise\.strength: .* circuits"),
    (lambda: Noise(ONES[:2]), ValueError, r"noise\.strength: got shape \(2,\)"),
    (lambda: [Noise(), Noise(-ONES)], ValueError, r"noise\[1\]\.strength: got a smallest value"),
    (lambda: Noise(factor=ONES), ValueError, r"noise\.factor: got shape \(3,\)"),
    (lambda: Noise(factor=torch.eye(6).double()), ValueError, r"noise\.factor: got shape \(6, 6\)"),
    (
        lambda: Noise(factor=torch.ones(6, 3, 2, dtype=DOUBLE)),
        ValueError,
        r"noise\.factor: .* circuits",
    ),
    (
        lambda: Noise(covariance=torch.ones(3, 3, dtype=DOUBLE).triu()),
        ValueError,
        r"noise\.covariance: .* transpose",
    ),
    (
        lambda: Noise(covariance=1 - torch.eye(3, dtype=DOUBLE)),
        ValueError,
        r"noise\.covariance: .* positive semidefinite",
    ),
    (lambda: Noise(tau=torch.ones(2, dtype=DOUBLE)), ValueError, r"noise\.tau: got shape \(2,\)"),
    (
        lambda: Noise(density=torch.ones(5, dtype=DOUBLE)),
        ValueError,
        r"noise\.density: got shape \(5,\), expected \(6,\)",
    ),
    (lambda: Noise(density=lambda f: -1 - f), ValueError, r"noise\.density: .* nonnegative"),
    (lambda: Noise(density=float_of), TypeError, r"noise\.density: .* got float"),
]


@pytest.mark.parametrize(("make", "error", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_bad_noise(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    circuit = some_circuit()
    with pytest.raises(error, match=message):
        cross_spectrum(circuit, F, noise=make())


def test_two_ways_to_say_noise_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="noise_y: got one beside noise"):
        cross_spectrum(some_circuit(), F, noise=Noise(), noise_y=0.3)
    with pytest.raises(ValueError, match=r"noise\.density: got a tensor"):
        stationary_covariance(some_circuit(), noise=Noise(density=torch.ones_like(F)))
