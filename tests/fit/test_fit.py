"""Fits: the truth comes back, failures are told, and what the data leave open has no number."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, POOL, vector
from scipy.optimize import curve_fit
from torch import Tensor

import fitting as benchmark
from deq_organics import (
    Circuit,
    FitParameter,
    FitStatus,
    Responses,
    Spectra,
    cross_spectrum,
    fit,
)

ONE = torch.ones(1, 1, dtype=DOUBLE)
CONTRASTS = torch.logspace(-2, 0, 12, dtype=DOUBLE)[:, None]


def _naka_rushton(parameters: Mapping[str, Tensor]) -> Circuit:
    """One neuron alone: its rate is C^m / (C^m + sigma^m)."""
    m = parameters.get("exponent", 2.0)
    return Circuit.from_gains(CONTRASTS, 1.0, 1.0, parameters["sigma"], None, ONE, exponent=m)


def _gained(state: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    return parameters["gain"] * state.rates[:, 0]


STARTS = {
    "sigma": FitParameter(0.5, low=0.0),
    "exponent": FitParameter(1.5, low=1.0, high=10.0),
    "gain": FitParameter(10.0, low=0.0),
}


def _rates(sigma: float = 0.2, exponent: float = 2.5, gain: float = 30.0) -> Tensor:
    c = CONTRASTS[:, 0]
    return gain * c**exponent / (c**exponent + sigma**exponent)


def _noisy(seed: int, noise: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _rates() + noise * torch.randn(12, generator=generator, dtype=DOUBLE)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_estimates_and_errors_are_scipys(known: bool) -> None:
    """scipy fits the closed form of a single neuron, by differences."""
    measured = _noisy(0)
    found = fit(_naka_rushton, STARTS, Responses(measured, 0.5 if known else None, _gained))

    def curve(c: Any, sigma: float, m: float, gain: float) -> Any:
        return gain * c**m / (c**m + sigma**m)

    expected, covariance = curve_fit(
        curve,
        CONTRASTS[:, 0].numpy(),
        measured.numpy(),
        (0.2, 2.5, 30.0),
        sigma=[0.5] * 12 if known else None,
        absolute_sigma=known,
        xtol=1e-12,
        ftol=1e-12,
    )
    assert found.converged
    assert found.names == ["sigma", "exponent", "gain"]
    values = torch.stack(list(found.estimates.values()))
    torch.testing.assert_close(values, torch.from_numpy(expected), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.covariance, torch.from_numpy(covariance), rtol=1e-3, atol=1e-9)
    errors = torch.stack(list(found.standard_errors.values()))
    torch.testing.assert_close(errors, found.covariance.diagonal().sqrt())
    assert found.circuit is not None
    assert not found.circuit.inhibitory_drive.requires_grad
    if known:
        assert found.noise is None
    else:
        assert found.noise == pytest.approx(math.sqrt(float(found.residual.square().sum()) / 9))


def test_errors_from_all_second_derivatives() -> None:
    measured = _noisy(1)
    start = {"sigma": STARTS["sigma"], "gain": STARTS["gain"]}
    data = Responses(measured, 0.5, _gained)
    found = fit(_naka_rushton, start, data, errors="hessian")

    def half(sigma: Tensor, gain: Tensor) -> Tensor:
        c2 = CONTRASTS[:, 0] ** 2
        return 0.5 * ((gain * c2 / (c2 + sigma**2) - measured) / 0.5).square().sum()

    point = tuple(found.estimates.values())
    rows = torch.autograd.functional.hessian(half, point)
    expected = torch.linalg.inv(torch.tensor([[float(x) for x in row] for row in rows]).double())
    torch.testing.assert_close(found.covariance, expected, rtol=1e-4, atol=1e-12)
    plain = fit(_naka_rushton, start, data)
    assert not torch.allclose(plain.covariance, expected, rtol=1e-3)


@pytest.mark.slow
def test_36_neurons_are_recovered() -> None:
    """One of the seeds of `benchmarks/fitting.py`, within three standard errors."""
    found = benchmark.recover(3)
    assert found.converged
    for name, truth in benchmark.TRUTH.items():
        error = float(found.standard_errors[name])
        assert abs(float(found.estimates[name]) - truth) < 3 * error
        assert error < 0.1 * truth
    assert found.noise == pytest.approx(benchmark.NOISE, rel=0.15)


def test_trial_points_without_a_steady_state_are_survived() -> None:
    found = benchmark.beyond_the_border()
    assert found.converged
    assert found.failed_trials > 0
    assert float(found.estimates["size"]) == pytest.approx(0.7, abs=1e-6)
    assert "failed" in str(found)
    assert found.last_failure


def test_trial_points_of_no_circuit_are_survived() -> None:
    """A semisaturation below zero is none, and no bound keeps the search from it."""

    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        return _naka_rushton({"sigma": 1.0 - parameters["p"].exp()})

    found = fit(build, {"p": -4.0}, Responses(_rates(0.2, 2.0, 1.0)[:, None]))
    assert found.converged
    assert found.failed_trials > 0
    assert float(1 - found.estimates["p"].exp()) == pytest.approx(0.2)


def test_a_start_without_a_steady_state_is_a_status() -> None:
    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        return Circuit(parameters["d"] * ONE, 0.5, -ONE, ONE)

    found = fit(build, {"d": 1.0}, Responses(vector([0.3]), 0.1))
    assert found.status == FitStatus.BAD_START
    assert found.circuit is None
    assert found.standard_errors["d"].isnan()
    assert "no steady state at the start" in str(found)


@pytest.mark.slow
def test_data_beyond_the_border_end_beside_it() -> None:
    """The circuit cannot answer as it should, and is followed to where it answers no more."""

    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        return Circuit(parameters["size"] * ONE, 0.5, -ONE, ONE)

    largest = Circuit(0.7 * ONE, 0.5, -ONE, ONE).steady_state().rates
    found = fit(build, {"size": 0.5}, Responses(3 * largest, 0.01), max_evaluations=12)
    assert not found.converged
    assert found.failed_trials > 0
    assert found.status in (FitStatus.EDGE, FitStatus.MAX_EVALUATIONS)
    assert found.standard_errors["size"].isnan()


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["gauss-newton", "hessian"])
def test_what_the_data_do_not_identify_has_no_number(errors: str) -> None:
    """With Wr = I only b / (b0 sigma) matters; and nothing depends on the last one."""

    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        b, b0, sigma = (parameters[name] for name in ("b", "b0", "sigma"))
        return Circuit.from_gains(CONTRASTS, b, b0, sigma, None, ONE)

    positive = {name: FitParameter(0.6, low=0.0) for name in ("b", "b0", "sigma")}
    found = fit(
        build,
        {**positive, "gain": FitParameter(20.0, low=0.0), "idle": torch.ones(2)},
        Responses(_noisy(2), 0.5, _gained),
        errors=errors,
    )
    assert found.converged
    for name in ("b", "b0", "sigma", "idle"):
        assert not found.identified[name].any()
        assert found.estimates[name].isnan().all()
        assert found.standard_errors[name].isnan().all()
        assert torch.isfinite(found.point[name]).all()
    assert found.identified["gain"]
    assert found.standard_errors["gain"] > 0
    text = str(found).splitlines()
    assert sum("not identified by the data" in line for line in text) == 5
    assert any(line.split()[0] == "idle[1]" for line in text)


def test_fewer_values_than_parameters() -> None:
    found = fit(
        _naka_rushton, STARTS, Responses(_rates()[:2], None, lambda s, p: _gained(s, p)[:2])
    )
    assert found.noise is None
    assert not torch.stack(list(found.identified.values())).all()
    assert found.covariance.isnan().all()


def test_a_parameter_at_its_bound() -> None:
    data = Responses(_noisy(3), 0.5, _gained)
    bounds = {**STARTS, "sigma": FitParameter(0.5, low=0.4, high=1.0)}
    found = fit(_naka_rushton, bounds, data)
    assert found.converged
    assert found.at_bound["sigma"]
    assert float(found.estimates["sigma"]) == pytest.approx(0.4, abs=1e-4)
    assert found.standard_errors["sigma"].isnan()
    assert found.standard_errors["gain"] > 0
    assert "at its bound" in str(found)
    alone = fit(
        lambda p: _naka_rushton({"sigma": p["sigma"]}),
        {"sigma": bounds["sigma"]},
        Responses(_rates(0.2, 2.0, 1.0)[:, None], 0.1),
    )
    assert alone.converged
    assert alone.at_bound["sigma"]


def test_too_few_evaluations_are_told() -> None:
    found = fit(_naka_rushton, STARTS, Responses(_noisy(0), None, _gained), max_evaluations=3)
    assert found.status == FitStatus.MAX_EVALUATIONS
    assert found.standard_errors["gain"].isnan()


def test_missing_values_do_not_count() -> None:
    measured = _noisy(4)
    some = measured.clone()
    some[::3] = torch.nan
    found = fit(_naka_rushton, STARTS, Responses(some, 0.5, _gained))
    kept = ~some.isnan()
    expected = fit(
        _naka_rushton, STARTS, Responses(some[kept], 0.5, lambda s, p: _gained(s, p)[kept])
    )
    assert found.residual.shape == (8,)
    torch.testing.assert_close(found.covariance, expected.covariance)


@pytest.mark.slow
def test_responses_and_spectra_together() -> None:
    """Time constants, which no steady state knows, from the power; the rest from both."""
    frequency = torch.linspace(0.002, 0.1, 20, dtype=DOUBLE)

    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        contrast = vector([0.2, 0.2], [1.0, 1.0])
        sigma, tau_y, tau_a = (parameters[name] for name in ("sigma", "tau_y", "tau_a"))
        recurrent = 0.8 * torch.eye(2, dtype=DOUBLE)
        return Circuit.from_gains(contrast, 1.0, 0.5, sigma, recurrent, POOL, tau_y, tau_a)

    truth = {"sigma": 0.2, "tau_y": 4.0, "tau_a": 9.0}
    tensors = {name: torch.tensor(value, dtype=DOUBLE) for name, value in truth.items()}
    circuit = build(tensors)
    generator = torch.Generator().manual_seed(0)
    power = cross_spectrum(circuit, frequency, noise_y=0.1).power
    spread = torch.randn(power.shape, generator=generator, dtype=DOUBLE)
    rates = circuit.steady_state(tol=1e-12).rates
    found = fit(
        build,
        {
            "sigma": FitParameter(0.4, low=0.0),
            "tau_y": FitParameter(2.0, low=0.0),
            "tau_a": FitParameter(20.0, low=0.0),
        },
        [
            Responses(rates, 0.01),
            Spectra(power * (0.1 * spread).exp(), frequency, noise_y=0.1, relative_error=0.1),
        ],
    )
    assert found.converged
    assert found.residual.numel() == 4 + 2 * 20 * 4
    for name, value in truth.items():
        error = float(found.standard_errors[name])
        assert abs(float(found.estimates[name]) - value) < 3 * error < 0.3 * value


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": [1.0]}, TypeError, r"data\[0\]: got float, expected Responses"),
        ({"data": []}, TypeError, "data: got list"),
        ({"parameters": {}}, ValueError, "parameters: got none"),
        ({"parameters": [1.0]}, TypeError, "parameters: got list"),
        ({"parameters": {"x": "1"}}, TypeError, r"parameters\['x'\], start: got '1'"),
        (
            {"parameters": {"x": torch.ones(2).long()}},
            TypeError,
            r"parameters\['x'\], start: got dt",
        ),
        ({"build": lambda p: 1.0}, TypeError, "build: got float, expected a Circuit"),
        (
            {"build": lambda p: Circuit(torch.ones(1), 1.0, None, torch.ones(1, 1))},
            TypeError,
            r"build: got circuits of torch.float32",
        ),
        ({"errors": "bootstrap"}, ValueError, "errors: got 'bootstrap'"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations: got 0"),
        ({"tol": 0.0}, ValueError, "tol: got 0.0"),
        (
            {"data": [Responses(ONE, 1.0), Responses(ONE)]},
            ValueError,
            r"data\[1\]: got noise=None, expected its size",
        ),
        ({"data": Responses(vector(1.0, 2.0))}, TypeError, r"read_out: got \(12, 1\) of the pred"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "build": lambda p: _naka_rushton({"sigma": p["sigma"]}),
        "parameters": {"sigma": 0.5},
        "data": Responses(_rates()[:, None]),
    }
    with pytest.raises(error, match=message):
        fit(**{**given, **arguments})


def test_an_error_of_build_at_the_start_is_raised() -> None:
    with pytest.raises(ValueError, match="semisaturation: got a smallest value of -1"):
        fit(_naka_rushton, {"sigma": -1.0}, Responses(_rates()[:, None]))


def test_bad_parameters_and_data() -> None:
    for start, options in ((0.0, {"low": 0.0}), (math.nan, {}), (torch.ones(0), {})):
        with pytest.raises(ValueError, match="start: got"):
            FitParameter(start, **options)
    with pytest.raises(ValueError, match="low: got nan"):
        FitParameter(1.0, low=math.nan)
    with pytest.raises(ValueError, match="values: got none"):
        Responses(torch.full((2,), math.nan))
    with pytest.raises(ValueError, match="values: got 1 NaN or infinite"):
        Responses(vector(1.0, math.inf))
    with pytest.raises(ValueError, match="noise: got shape"):
        Responses(vector(1.0, 2.0), torch.ones(3))
    with pytest.raises(ValueError, match="noise: got a smallest value of 0"):
        Responses(vector(1.0, 2.0), 0.0)
    with pytest.raises(ValueError, match="values: got a smallest value of -1"):
        Spectra(vector(1.0, -1.0), vector(0.1))
