"""The equations against the paper's, written again in firing rates, and against autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import MODELS, RECURRENCES
from torch import Tensor
from torch.func import jacrev, vmap

from deq_organics import Circuit


def eq1(circuit: Circuit, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 (Eq. 87 if rectified) neuron by neuron, in firing rates, for one circuit."""
    m, n = circuit.exponent, circuit.n
    wr = torch.eye(n).to(y) if circuit.recurrent_weight is None else circuit.recurrent_weight
    tau_y, tau_a = circuit.tau_y.expand(n), circuit.tau_a.expand(n)
    plus = [max(float(v), 0.0) ** m for v in y]
    minus = [0.0 if circuit.rectified else max(-float(v), 0.0) ** m for v in y]
    inhibition = [max(float(v), 0.0) ** (1 / m) for v in a]
    dy, da = torch.zeros_like(y), torch.zeros_like(a)
    for i in range(n):
        recurrent = sum(
            float(wr[i, j]) * (plus[j] ** (1 / m) - minus[j] ** (1 / m)) for j in range(n)
        )
        pool = sum(
            float(circuit.normalization_weight[i, j]) * (plus[j] + minus[j]) * inhibition[j] ** m
            for j in range(n)
        )
        drive = float(circuit.input_drive[i])
        dy[i] = (-float(y[i]) + drive + (1 - inhibition[i]) * recurrent) / float(tau_y[i])
        da[i] = (-float(a[i]) + float(circuit.inhibitory_drive[i]) + pool) / float(tau_a[i])
    return dy, da


@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
@pytest.mark.parametrize("recurrence", ["identity", "shared"])
def test_vector_field_is_eq1(
    parameters: Callable[..., dict[str, Any]],
    any_state: Callable[..., tuple[Tensor, Tensor]],
    recurrence: str,
    exponent: float,
    rectified: bool,
) -> None:
    arguments = parameters((), 4, recurrence=recurrence, exponent=exponent, rectified=rectified)
    tau = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    circuit = Circuit(**arguments, tau_y=tau, tau_a=0.25)
    for seed in range(3):
        y, a = any_state(circuit, seed)
        for found, expected in zip(circuit.vector_field(y, a), eq1(circuit, y, a), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_eq1_where_an_inhibitory_potential_is_negative(circuit: Callable[..., Circuit]) -> None:
    one = circuit((), 3)
    y, a = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([-0.3, 0.0, 0.7]).double()
    for found, expected in zip(one.vector_field(y, a), eq1(one, y, a), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_jacobian_is_the_derivative(
    parameters: Callable[..., dict[str, Any]],
    any_state: Callable[..., tuple[Tensor, Tensor]],
    recurrence: str,
    exponent: float,
    rectified: bool,
) -> None:
    n = 3
    arguments = parameters((2, 2), n, recurrence=recurrence, exponent=exponent, rectified=rectified)
    tau_y = torch.rand(2, n, dtype=torch.float64) + 0.5
    circuit = Circuit(**arguments, tau_y=tau_y, tau_a=0.3)
    y, a = any_state(circuit)

    def field(state: Tensor) -> Tensor:
        return torch.cat(circuit.vector_field(*state.chunk(2, -1)), -1)

    full = jacrev(field)(torch.cat([y, a], -1))
    index = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    expected = torch.stack([full[i, j, :, i, j] for i, j in index]).reshape(2, 2, 2 * n, 2 * n)
    torch.testing.assert_close(circuit.jacobian(y, a), expected, rtol=1e-11, atol=1e-12)


def test_jacobian_of_one_state_has_no_batch_dimension(
    circuit: Callable[..., Circuit], any_state: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    one = circuit(())
    assert one.jacobian(*any_state(one)).shape == (6, 6)


def test_jacobian_where_inhibition_is_silent(circuit: Callable[..., Circuit]) -> None:
    one = circuit((), 2)
    y, a = torch.tensor([0.5, -1.0]).double(), torch.tensor([-0.3, -0.1]).double()
    expected = jacrev(lambda s: torch.cat(one.vector_field(*s.chunk(2))))(torch.cat([y, a]))
    torch.testing.assert_close(one.jacobian(y, a), expected)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_firing_rates(parameters: Callable[..., dict[str, Any]], exponent: float) -> None:
    circuit = Circuit(**parameters((), 3, exponent=exponent))
    y = torch.tensor([-2.0, 0.0, 3.0]).double()
    a = torch.tensor([-1.0, 0.0, 4.0]).double()
    plus, minus, inhibition = circuit.firing_rates(y, a)
    assert plus.tolist() == pytest.approx([0, 0, 3**exponent])
    assert minus.tolist() == pytest.approx([2**exponent, 0, 0])
    assert inhibition.tolist() == pytest.approx([0, 0, 4 ** (1 / exponent)])


@pytest.mark.parametrize(("exponent", "rectified"), [*MODELS, (1.0, False), (5.0, True)])
def test_closed_form_is_a_fixed_point(
    parameters: Callable[..., dict[str, Any]], exponent: float, rectified: bool
) -> None:
    arguments = parameters((20,), 5, recurrence="identity", exponent=exponent, rectified=rectified)
    sign = torch.ones(5, dtype=torch.float64)
    sign[::2] = -1.0
    circuit = Circuit(**{**arguments, "input_drive": arguments["input_drive"] * sign})
    y, a = circuit.closed_form()
    for residual in circuit.vector_field(y, a):
        assert residual.abs().max() < 1e-13
    assert (a > 0).all()


def test_steady_state_is_divisive_normalization() -> None:
    """Eq. 2: for Wr = I and b = b0 the rates do not depend on the gain."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    w = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    sigma = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    pool = z.relu() ** 2 + (-z).relu() ** 2
    expected = z.relu() ** 2 / (sigma**2 + pool @ w.T)
    for gain in (0.3, 2.0):
        state = Circuit(gain * z, gain**2 * sigma**2, None, w).steady_state()
        torch.testing.assert_close(state.rates, expected)


def test_divisive_normalization_with_another_exponent() -> None:
    z = torch.tensor([0.5, -1.5, 1.0]).double()
    w, sigma, m = torch.ones(3, 3).double(), 0.7, 3.0
    state = Circuit(z, sigma**m, None, w, exponent=m).steady_state()
    expected = z.relu() ** m / (sigma**m + (z.abs() ** m).sum())
    torch.testing.assert_close(state.rates, expected)


def test_vector_field_under_vmap(
    circuit: Callable[..., Circuit], any_state: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    batch = circuit((5,))
    y, a = any_state(batch)

    def field(drive: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        one = Circuit(
            drive, batch.inhibitory_drive, batch.recurrent_weight, batch.normalization_weight
        )
        return one.vector_field(y, a)

    found = vmap(field)(batch.input_drive, y, a)
    for part, expected in zip(found, batch.vector_field(y, a), strict=True):
        torch.testing.assert_close(part, expected)
