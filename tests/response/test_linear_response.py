"""The linear response against closed forms, scipy and its own definitions."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, MODELS, POOL, random_parameters, vector
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from deq_organics import (
    Circuit,
    SteadyState,
    SteadyStateWarning,
    cross_spectrum,
    fixed_points_2d,
    stationary_covariance,
    transfer_function,
)
from deq_organics.problem import Problem

FREQUENCY = torch.linspace(0, 2, 9, dtype=DOUBLE)


def some_circuit(
    batch: tuple[int, ...] = (4,),
    n: int = 3,
    *,
    exponent: float = 2.0,
    rectified: bool = False,
    dtype: torch.dtype = DOUBLE,
    seed: int = 0,
) -> Circuit:
    """Random circuits with a time constant per neuron, all stable."""
    arguments = random_parameters(
        batch, n, recurrence="per-circuit", exponent=exponent, rectified=rectified, seed=seed
    )
    arguments["recurrent_weight"] = 0.5 * arguments["recurrent_weight"]
    arguments["tau_y"] = torch.linspace(0.5, 2, n, dtype=DOUBLE)
    arguments["tau_a"] = torch.linspace(3, 1, n, dtype=DOUBLE)
    cast: dict[str, Any] = {
        k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    return Circuit(**cast)


@pytest.mark.parametrize("r", [0.2, 1e-12])
def test_ornstein_uhlenbeck(r: float) -> None:
    """Without input the neurons are uncoupled, each with one rate: Lorentzian spectra."""
    c, tau_y, tau_a, s = 0.49, 2.0, 50.0, 0.3
    circuit = Circuit(vector(0.0), c, None, torch.ones(1, 1, dtype=DOUBLE), tau_y, tau_a)
    rates, noise = vector(c**0.5 / tau_y, 1 / tau_a), vector(s, r)
    found = cross_spectrum(circuit, FREQUENCY, noise_y=s, noise_a=r, sided="two")
    omega = 2 * math.pi * FREQUENCY[:, None]
    expected = noise**2 / (rates**2 + omega**2)
    torch.testing.assert_close(found.density, torch.diag_embed(expected) + 0j, rtol=1e-9, atol=0)
    covariance = stationary_covariance(circuit, noise_y=s, noise_a=r)
    torch.testing.assert_close(covariance, torch.diag(noise**2 / (2 * rates)), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.coherence(), torch.eye(2, dtype=DOUBLE).expand(9, 2, 2))


def test_an_inhibitory_neuron_lags_as_a_low_pass_filter() -> None:
    """Noise in ``y`` only: ``a`` is ``y`` through a filter with one pole, and fully coherent."""
    circuit = Circuit(vector(0.6), 0.3, None, torch.ones(1, 1, dtype=DOUBLE), tau_a=3.0)
    state = circuit.steady_state(tol=1e-13)
    decay = -circuit.jacobian(state.y, state.a)[1, 1]
    found = cross_spectrum(circuit, FREQUENCY)
    lag = torch.atan2(2 * math.pi * FREQUENCY, decay)
    torch.testing.assert_close(found.phase()[:, 0, 1], -lag)
    torch.testing.assert_close(found.phase()[:, 1, 0], lag)
    torch.testing.assert_close(found.coherence(), torch.ones(9, 2, 2, dtype=DOUBLE))


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_at_zero_frequency_it_is_the_steady_state_s_derivative(
    exponent: float, rectified: bool
) -> None:
    circuit = some_circuit((), exponent=exponent, rectified=rectified)

    def settled(drive: Tensor) -> Tensor:
        state = replace(circuit, input_drive=drive).steady_state(tol=1e-13)
        return torch.cat([state.y, state.a])

    expected = torch.autograd.functional.jacobian(settled, circuit.input_drive)
    gain = transfer_function(circuit, torch.zeros(1, dtype=DOUBLE))[0, :, :3] / circuit.tau_y
    torch.testing.assert_close(gain, expected + 0j, rtol=1e-9, atol=1e-11)


def test_transfer_function_filters_the_noise() -> None:
    circuit, noise = some_circuit(), vector(0.3, 0.0, 1.0)
    h = transfer_function(circuit, FREQUENCY)
    s = torch.diag(torch.cat([noise, vector(0.5, 0.5, 0.5)]) ** 2) + 0j
    found = cross_spectrum(circuit, FREQUENCY, noise_y=noise, noise_a=0.5, sided="two")
    torch.testing.assert_close(found.density, (h @ s @ h.mH).conj())
    mirrored = transfer_function(circuit, -FREQUENCY)
    torch.testing.assert_close(mirrored, h.conj())


def test_one_sided_is_doubled_above_zero() -> None:
    circuit = some_circuit()
    one, two = (cross_spectrum(circuit, FREQUENCY, sided=s).density for s in ("one", "two"))
    assert torch.equal(one[:, 0], two[:, 0])
    assert torch.equal(one[:, 1:], 2 * two[:, 1:])


@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_spectra_are_hermitian_with_coherence_in_the_unit_interval(
    exponent: float, rectified: bool
) -> None:
    circuit = some_circuit((5,), exponent=exponent, rectified=rectified)
    found = cross_spectrum(circuit, FREQUENCY, noise_a=0.1)
    torch.testing.assert_close(found.density, found.density.mH)
    assert (torch.linalg.eigvalsh(found.density) > 0).all()
    coherence = found.coherence()
    assert ((coherence >= 0) & (coherence <= 1)).all()
    assert ((coherence > 0.01) & (coherence < 0.99)).any()
    torch.testing.assert_close(coherence, coherence.mT)
    unit = torch.ones(5, 9, 6, dtype=DOUBLE)
    torch.testing.assert_close(coherence.diagonal(dim1=-2, dim2=-1), unit)


def test_the_spectrum_integrates_to_the_covariance() -> None:
    """By the midpoint rule for ``f = tan(t)``, whose error falls exponentially."""
    circuit = some_circuit()
    noise: dict[str, Any] = {"noise_y": vector(0.3, 0.2, 1.0), "noise_a": 0.4}
    points = 2000
    t = math.pi * ((torch.arange(points, dtype=DOUBLE) + 0.5) / points - 0.5)
    found = cross_spectrum(circuit, t.tan(), sided="two", **noise).density
    integral = (found / t.cos()[:, None, None] ** 2).sum(-3) * math.pi / points
    expected = stationary_covariance(circuit, **noise)
    torch.testing.assert_close(integral, expected + 0j, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("n", [1, 4, 20])
def test_covariance_agrees_with_scipy(n: int, scale: float) -> None:
    """Also of stiff circuits: ``tau_y`` and ``tau_a`` 10,000-fold apart."""
    circuit = replace(some_circuit((3,), n), tau_y=torch.full((n,), scale, dtype=DOUBLE))
    noise = torch.linspace(0.2, 1, n, dtype=DOUBLE)
    found = stationary_covariance(circuit, noise_y=noise, noise_a=0.3)
    state = circuit.steady_state(tol=1e-13)
    q = -torch.diag(torch.cat([noise, torch.full_like(noise, 0.3)]) ** 2).numpy()
    for index, jacobian in enumerate(circuit.jacobian(state.y, state.a).numpy()):
        expected = torch.from_numpy(solve_continuous_lyapunov(jacobian, q))
        tol = 1e-9 * float(expected.abs().max())
        torch.testing.assert_close(found[index], expected, rtol=1e-9, atol=tol)
    assert (torch.linalg.eigvalsh(found) > 0).all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes(batch: tuple[int, ...]) -> None:
    circuit = some_circuit(batch)
    found = cross_spectrum(circuit, FREQUENCY)
    assert found.density.shape == found.coherence().shape == found.phase().shape
    assert found.density.shape == (*batch, 9, 6, 6)
    assert found.power.shape == (*batch, 9, 6)
    assert found.density.dtype == torch.complex128
    assert found.power.dtype == found.coherence().dtype == found.phase().dtype == DOUBLE
    assert transfer_function(circuit, FREQUENCY).shape == (*batch, 9, 6, 6)
    assert stationary_covariance(circuit).shape == (*batch, 6, 6)


def test_a_batch_is_its_circuits_one_by_one() -> None:
    circuit = some_circuit((4,))
    noise_y, noise_a = torch.rand(4, 3, dtype=DOUBLE), torch.rand(3, dtype=DOUBLE)
    found = cross_spectrum(circuit, FREQUENCY, noise_y=noise_y, noise_a=noise_a).density
    covariance = stationary_covariance(circuit, noise_y=noise_y, noise_a=noise_a)
    for k in range(4):
        one = replace(
            circuit,
            **{name: getattr(circuit, name)[k] for name in ("input_drive", "recurrent_weight")},
        )
        alone: dict[str, Any] = {"noise_y": noise_y[k], "noise_a": noise_a}
        torch.testing.assert_close(cross_spectrum(one, FREQUENCY, **alone).density, found[k])
        torch.testing.assert_close(stationary_covariance(one, **alone), covariance[k])


def test_one_circuit_with_noise_of_several_strengths() -> None:
    """Leading dimensions are circuits: the same one several times."""
    circuit, noise = some_circuit(()), torch.rand(6, 3, dtype=DOUBLE)
    several = replace(circuit, input_drive=circuit.input_drive.expand(6, 3))
    found = cross_spectrum(several, FREQUENCY, noise_y=noise, noise_a=noise).density
    alone = cross_spectrum(circuit, FREQUENCY, noise_y=noise[2], noise_a=noise[2]).density
    torch.testing.assert_close(found[2], alone)
    with pytest.raises(ValueError, match=r"noise_y: got shape \(6, 3\), .* circuits"):
        cross_spectrum(circuit, FREQUENCY, noise_y=noise)


def test_as_many_frequencies_as_components() -> None:
    """Where torch.linalg.solve could take the right-hand side for a batch of vectors."""
    circuit = some_circuit((1,))
    whole = transfer_function(circuit, FREQUENCY[:6])
    parts = [transfer_function(circuit, f[None]) for f in FREQUENCY[:6]]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_a_given_state_is_used() -> None:
    circuit = some_circuit()
    state = circuit.steady_state(tol=1e-13)
    torch.testing.assert_close(
        cross_spectrum(circuit, FREQUENCY, state=state).density,
        cross_spectrum(circuit, FREQUENCY).density,
    )
    # With wr = 2 there are two stable fixed points.
    one = torch.ones(1, 1, dtype=DOUBLE)
    bistable = Circuit(vector(0.1), 0.01, 2.0 * one, one, tau_a=0.1)
    points = fixed_points_2d(bistable)
    covariances = []
    for k in points.stable.nonzero().squeeze(-1):
        y, a = points.y[k].unsqueeze(-1), points.a[k].unsqueeze(-1)
        good = torch.tensor(True)
        state = SteadyState(y, a, y.relu() ** 2, good, 0.0 * y[0], good.int(), good.int())
        covariances.append(stationary_covariance(bistable, state=state))
    first, second = covariances
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("factor", [1.1, 1e3, math.nan])
def test_a_given_state_that_is_no_fixed_point_is_nan(factor: float) -> None:
    circuit = some_circuit((2,))
    state = circuit.steady_state(tol=1e-13)
    moved = replace(state, y=torch.stack([state.y[0], factor * state.y[1]]))
    with pytest.warns(SteadyStateWarning, match=r"1 of 2 .*; 1: the given state is no fixed point"):
        found = stationary_covariance(circuit, state=moved)
    assert torch.equal(found[0], stationary_covariance(circuit, state=state)[0])
    assert found[1].isnan().all()


def test_noise_of_zero_strength_is_no_noise() -> None:
    circuit, zero = some_circuit(), torch.zeros(3, dtype=DOUBLE)
    number = cross_spectrum(circuit, FREQUENCY, noise_a=0)
    tensor = cross_spectrum(circuit, FREQUENCY, noise_a=zero)
    torch.testing.assert_close(number.density, tensor.density)
    silent = cross_spectrum(circuit, FREQUENCY, noise_y=0)
    assert not silent.density.any()
    assert not silent.coherence().any()
    assert not stationary_covariance(circuit, noise_y=0).any()


# The circuit's tensors; what follows them are options.
LEAVES = Problem._fields[:-2]


def as_function(
    quantity: Callable[..., Any],
    exponent: float = 2.0,
    rectified: bool = False,
    identity: bool = False,
) -> tuple[Callable[..., Any], list[Tensor]]:
    """A quantity as a function of the circuit's tensors and the noise, and these as leaves."""
    circuit = some_circuit((2,), 2, exponent=exponent, rectified=rectified, seed=3)
    names = [name for name in LEAVES if not (identity and name == "recurrent_weight")]
    leaves = [getattr(circuit, name).clone().requires_grad_() for name in names]
    leaves += [vector(0.3, 0.7).requires_grad_(), vector((0.5, 0.1), (0.2, 0.4)).requires_grad_()]
    frequency = vector(0.2)

    def function(*tensors: Tensor) -> Any:
        changes: dict[str, Any] = dict(zip(names, tensors, strict=False))
        if identity:
            changes["recurrent_weight"] = None
        noise: dict[str, Any] = dict(zip(("noise_y", "noise_a"), tensors[-2:], strict=True))
        changed = replace(circuit, **changes)
        if quantity is stationary_covariance:
            return stationary_covariance(changed, **noise)
        found = cross_spectrum(changed, frequency, **noise)
        return torch.view_as_real(found.density), found.coherence()

    return function, leaves


QUANTITIES = [cross_spectrum, stationary_covariance]


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_gradcheck(quantity: Callable[..., Any], exponent: float, rectified: bool) -> None:
    function, leaves = as_function(quantity, exponent, rectified)
    assert gradcheck(function, leaves, fast_mode=exponent != 2.0 or rectified)


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_gradcheck_without_recurrent_weights(quantity: Callable[..., Any]) -> None:
    function, leaves = as_function(quantity, identity=True)
    assert gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_second_derivatives(quantity: Callable[..., Any]) -> None:
    function, leaves = as_function(quantity, exponent=3.0)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("rectified", [False, True])
def test_silent_neurons_have_finite_gradients(rectified: bool) -> None:
    drive = vector(0.5, -0.3).requires_grad_()
    circuit = Circuit(drive, 0.4, None, POOL, exponent=1.5, rectified=rectified)
    (grad,) = torch.autograd.grad(cross_spectrum(circuit, FREQUENCY).power.sum(), drive)
    assert grad.isfinite().all()


@pytest.mark.slow
def test_under_torch_func() -> None:
    circuit = some_circuit((4,))
    frequency = FREQUENCY[:2]

    def loss(drive: Tensor, weight: Tensor) -> Tensor:
        changed = replace(circuit, input_drive=drive, recurrent_weight=weight)
        spectrum = cross_spectrum(changed, frequency, noise_a=0.1)
        return spectrum.power.sum((-2, -1)) + stationary_covariance(changed).sum((-2, -1))

    drive, weight = circuit.input_drive, circuit.recurrent_weight
    torch.testing.assert_close(torch.vmap(loss)(drive, weight), loss(drive, weight))
    leaf = drive.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, weight).sum(), leaf)
    found = torch.vmap(torch.func.grad(loss))(drive, weight)
    torch.testing.assert_close(found, expected)


def test_single_and_half_precision() -> None:
    exact = cross_spectrum(some_circuit(), FREQUENCY, noise_a=0.2)
    single = some_circuit(dtype=torch.float32)
    found = cross_spectrum(single, FREQUENCY.float(), noise_a=0.2)
    assert found.density.dtype == torch.complex64
    torch.testing.assert_close(found.density.to(torch.complex128), exact.density, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.coherence().double(), exact.coherence(), rtol=0, atol=1e-3)
    covariance = stationary_covariance(single, noise_a=0.2)
    expected = stationary_covariance(some_circuit(), noise_a=0.2)
    torch.testing.assert_close(covariance.double(), expected, rtol=1e-3, atol=1e-4)
    half = some_circuit(dtype=torch.float16)
    noise = torch.full((3,), 0.2, dtype=torch.float16)
    assert cross_spectrum(half, FREQUENCY.half(), noise_a=noise).power.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(stationary_covariance(single, noise_a=0.2), covariance)
        again = cross_spectrum(single, FREQUENCY.float(), noise_a=0.2)
    torch.testing.assert_close(again.density, found.density)
