"""Trials of noisy circuits: their statistics, their reproducibility, what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from scipy import signal

import noise_in_time
from deq_organics import (
    Circuit,
    Noise,
    SimulationError,
    SimulationWarning,
    Trials,
    simulate,
    simulate_noise,
)

T = torch.linspace(0, 3, 7, dtype=DOUBLE)


def some_circuit(batch: tuple[int, ...] = (3,), shared: bool = False) -> Circuit:
    recurrence = "shared" if shared else "per-circuit"
    arguments = random_parameters(batch, 2, recurrence=recurrence, shared=shared, seed=4)
    arguments["recurrent_weight"] = 0.5 * arguments["recurrent_weight"]
    # With this seed each of them has a stable steady state; with seed 1 one of three has none.
    arguments["inhibitory_drive"] = arguments["inhibitory_drive"] + 0.5
    return Circuit(**arguments, tau_a=1.5)


NOISES = [Noise(0.1, tau=0.5), Noise(0.1, "state", shared=True, multiplicative=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", noise_in_time.NOISES)
def test_trials_have_the_statistics_of_the_theory(name: str) -> None:
    """A small version of benchmarks/noise_in_time.py: it notices every parameter that doubles."""
    # The shared source makes less than 20 % of any variance in so small a ring: 150 trials hardly
    # see its correlation time (0.9 half-widths), and bands shrink with the root of their number.
    trials = 600 if name == "shared" else 150
    options = noise_in_time.Options(
        trials=trials, n=4, samples=64, burn_in=60.0, dt=0.25, wrong=2.0
    )
    found = noise_in_time.measure(name, options)
    assert max(found["deviations"].values()) < 1, found
    assert all(max(values.values()) > 1 for values in found["wrong"].values()), found


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_trial_does_not_depend_on_what_is_beside_it(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = some_circuit(shared=shared)
    options: dict[str, Any] = {"noise": NOISES, "dt": 0.1, "burn_in": 0.5, "seed": 3}
    whole = simulate_noise(circuit, T, trials=5, **options)
    assert whole.y.shape == whole.a.shape == (5, 7, 3, 2)
    # Random numbers are drawn for as many steps at once as the trials leave room for.
    monkeypatch.setattr("deq_organics.trials.stepping._STEPS_AT_A_TIME", 7)
    blocks = simulate_noise(circuit, T, trials=3, block=2, **options)
    torch.testing.assert_close(blocks.y, whole.y[:3], rtol=1e-12, atol=1e-12)
    for k in range(3):
        parts: dict[str, Any] = {
            name: value[k]
            for name, value in circuit.parameters._asdict().items()
            if isinstance(value, torch.Tensor) and value.ndim > (2 if "weight" in name else 1)
        }
        alone = simulate_noise(replace(circuit, **parts), T, trials=5, **options)
        torch.testing.assert_close(alone.a, whole.a[:, :, k], rtol=1e-12, atol=1e-12)
    other = simulate_noise(circuit, T, trials=5, **{**options, "seed": 4})
    assert (other.y - whole.y)[:, 1:].abs().min() > 0
    assert (whole.y[1:] - whole.y[:-1])[:, 1:].abs().min() > 0
    seeds = simulate_noise(circuit, T, trials=5, **{**options, "seed": torch.tensor([4, 3, 5])})
    torch.testing.assert_close(seeds.y[:, :, 1], whole.y[:, :, 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seeds.y[:, :, 0], other.y[:, :, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("lead", [(), (1,), (3,)])
def test_every_neuron_may_have_an_exponent_of_its_own(shared: bool, lead: tuple[int, ...]) -> None:
    """As many trials as circuits, each of which is the one of its circuit alone."""
    circuit = some_circuit(shared=shared)
    m = 1.5 + torch.rand(*lead, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    circuit = replace(circuit, exponent=m)
    options: dict[str, Any] = {"noise": NOISES, "dt": 0.25, "trials": 3, "start": "rest"}
    whole = simulate_noise(circuit, T, **options)
    for k in range(3):
        parts: dict[str, Any] = {
            name: value[k]
            for name, value in circuit.parameters._asdict().items()
            if name != "exponent"
            and isinstance(value, torch.Tensor)
            and value.ndim > (2 if "weight" in name else 1)
        }
        parts["exponent"] = m.expand(3, 2)[k]
        alone = simulate_noise(replace(circuit, **parts), T, **options)
        torch.testing.assert_close(alone.y, whole.y[:, :, k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.rates, whole.rates[:, :, k], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_without_noise_it_is_the_simulation() -> None:
    circuit = some_circuit()
    drive: Callable[[torch.Tensor], torch.Tensor] = lambda t: torch.cos(t).expand(3, 2)  # noqa: E731
    options: dict[str, Any] = {"start": "rest", "input_drive": drive}
    found = simulate_noise(circuit, T, noise=Noise(0.0), dt=0.004, trials=2, **options)
    expected = simulate(circuit, T, rtol=1e-9, **options)
    torch.testing.assert_close(found.y[1], expected.y, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0].a, expected.a, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="input that changes in time"):
        found.theory_covariance()


@pytest.mark.parametrize("step", [1e-4, 0.02, 0.3, 5.0])
def test_integrals_of_ornstein_uhlenbeck_noise(step: float) -> None:
    """The kicks' covariance against the double integral of exp(-|s - t|), by quadrature."""
    from deq_organics.response.noise_sources import sources_of
    from deq_organics.trials.kicks import Kicks

    circuit = Circuit(vector(0.1), 0.5, None, torch.ones(1, 1, dtype=DOUBLE))
    sources = sources_of(circuit, [Noise(1.0, tau=1.0)])
    kicks = Kicks(sources, torch.Size(()), 1, vector((0.0,)))
    # The columns of the linear map from independent normal numbers to two kicks in a row.
    columns = []
    for unit in torch.eye(5, dtype=DOUBLE):
        kicks.start(unit[:1].reshape(1, 1, 1))
        both = [kicks.step(step, unit[i : i + 2].reshape(1, 1, 2), None) for i in (1, 3)]
        columns.append([float(kick[0, 0, 0]) for kick in both])
    found = np.array(columns).T @ np.array(columns)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x, w = 0.5 * step * (nodes + 1), 0.5 * step * weights
    inner = 2.0 - np.exp(-x) - np.exp(-(step - x))
    own, later = w @ inner, w @ np.exp(x - step) * (w @ np.exp(-x))
    np.testing.assert_allclose(found, [[own, later], [later, own]], rtol=1e-9)


def some_trials(count: int = 6, samples: int = 32) -> Trials:
    t = 0.25 * torch.arange(samples, dtype=DOUBLE)
    return simulate_noise(some_circuit((2,)), t, noise=NOISES, dt=0.25, trials=count)


def test_statistics_are_those_of_numpy_and_scipy() -> None:
    trials = some_trials()
    y, a = trials.y.numpy(), trials.a.numpy()
    rates = np.maximum(y, 0) ** 2
    np.testing.assert_allclose(trials.mean().numpy(), rates.mean(0))
    # At the first time all trials are alike: what is left there is rounding, squared.
    np.testing.assert_allclose(trials.variance("a").numpy(), a.var(0, ddof=1), atol=1e-28)
    state = np.concatenate([y, a], -1)
    state = state - state.mean(0)
    expected = np.einsum("rtci,rtcj->cij", state, state) / (5 * 32)
    np.testing.assert_allclose(trials.covariance().numpy(), expected)
    found = trials.spectrum(16, 4)
    for circuit, i, j in ((0, 0, 0), (1, 0, 3), (0, 2, 1)):
        f, density = signal.csd(
            state[:, :, circuit, i], state[:, :, circuit, j], 4.0, nperseg=16, noverlap=4,
            detrend=False, axis=1,
        )  # fmt: skip
        np.testing.assert_allclose(found.frequency.numpy(), f)
        np.testing.assert_allclose(found.density[circuit, :, i, j], density.mean(0) * 6 / 5)
    counts = trials.counts(2.0)
    assert counts.shape == (6, 4, 2, 2)
    np.testing.assert_allclose(counts[:, 1].numpy(), rates[:, 8:16].sum(1) * 0.25)
    fano = counts.var(0) / counts.mean(0)
    torch.testing.assert_close(trials.fano_factor(2.0, gain=3.0), 3 * fano, equal_nan=True)
    pairs = trials.noise_correlation(quantity="y")[1].numpy()
    assert pairs.shape == (2, 2)
    assert pairs[0, 1] == pytest.approx(
        expected[1, 0, 1] / np.sqrt(expected[1, 0, 0] * expected[1, 1, 1])
    )
    windows = counts[:, :, 0].double() - counts[:, :, 0].double().mean(0)
    if (windows != 0).any((0, 1)).all():
        goal = np.corrcoef(windows.reshape(-1, 2).T.numpy())[0, 1]
        found_pair = float(trials.noise_correlation(2.0)[0, 0, 1])
        assert found_pair == pytest.approx(goal, abs=0.05)


def test_theory_spectrum_is_the_continuous_one_where_sampling_is_fine() -> None:
    circuit = some_circuit(())
    t = 0.02 * torch.arange(4000, dtype=DOUBLE)
    empty = torch.zeros(2, 4000, 2, dtype=DOUBLE)
    noises = (Noise(0.1), Noise(0.1, "a", tau=0.5))
    trials = Trials(t, empty, empty, circuit, noises, 0.02, torch.zeros(2, dtype=DOUBLE))
    sampled, exact = (trials.theory_spectrum(sampled=s) for s in (True, False))
    low = slice(4, 80)  # To 1 of 25.
    torch.testing.assert_close(
        sampled.density[low], exact.density[low], rtol=2e-2, atol=float(exact.power.max()) * 1e-4
    )
    # Nothing is lost: the powers add up to the variance, by Parseval's theorem.
    total = sampled.power.sum(0) * sampled.frequency[1]
    torch.testing.assert_close(total, trials.theory_covariance().diagonal(), rtol=1e-9, atol=0)


@pytest.mark.slow
def test_a_trial_that_diverges_is_reported() -> None:
    """The counterexample without a steady state."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    circuit = Circuit(vector(1.0), 0.5, -one, one)
    t, noise = torch.linspace(0, 30, 61, dtype=DOUBLE), Noise(0.01)
    options: dict[str, Any] = {"noise": noise, "start": "rest", "dt": 0.05, "trials": 3}
    with pytest.warns(SimulationWarning, match=r"3 of 3 trials diverge, the first after t = "):
        found = simulate_noise(circuit, t, **options)
    assert not found.finished.any()
    assert found.mean()[-1].isnan().all()
    assert ((found.reached > 0) & (found.reached < 30)).all()
    assert "diverged" in str(found)
    with pytest.raises(SimulationError, match="trials diverge"):
        simulate_noise(circuit, t, on_failure="error", **options)


MISTAKES = [
    ({"noise": Noise(density=torch.ones_like)}, ValueError, r"noise\.density: got one"),
    ({"noise": 0.1}, TypeError, "noise: got float"),
    ({"dt": 2.0}, ValueError, r"dt: got 2, expected at most"),
    ({"dt": -1.0}, ValueError, "dt: got"),
    ({"trials": 0}, ValueError, "trials: got 0"),
    ({"seed": -1}, ValueError, "seed: got -1"),
    ({"seed": 0.5}, TypeError, "seed: got 0.5"),
    ({"seed": torch.tensor([1, 2])}, ValueError, r"seed: got shape \(2,\)"),
    ({"t": torch.zeros(3)}, ValueError, "t: got shape"),
    ({"start": "there"}, ValueError, "start: got 'there'"),
    ({"burn_in": -1.0}, ValueError, "burn_in: got -1"),
    ({"block": 0}, ValueError, "block: got 0"),
    ({"on_failure": "stop"}, ValueError, "on_failure: got 'stop'"),
    ({"input_drive": torch.ones(7, 5, 2, dtype=DOUBLE)}, ValueError, "input_drive: got leading"),
]


@pytest.mark.parametrize(("changes", "error", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulate_noise(**{"circuit": some_circuit(), "t": T, "noise": Noise(), **changes})


def test_refusals_of_trials() -> None:
    trials = some_trials(2, 8)
    for call, message in (
        (lambda: trials.counts(0.3), "window: got 0.3"),
        (lambda: trials.spectrum(9), "segment: got 9"),
        (lambda: trials.mean("b"), "quantity: got 'b'"),
        (lambda: some_trials(1, 8).variance(), "trials: got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    drive = vector(0.3, 0.2).requires_grad_()
    with pytest.raises(RuntimeError, match="derivatives"):
        simulate_noise(Circuit(drive, 1.0, None, POOL), T, noise=Noise())
