"""The checker against dense eigenvalues, and the certificate that needs none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, MODELS, RECURRENCES
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ, SteadyState, check_stability, m_matrix_certificate


def leading(circuit: Circuit, state: SteadyState) -> Tensor:
    """Leading eigenvalues by numpy, of the pair the upper one."""
    values = np.linalg.eigvals(circuit.jacobian(state.y, state.a).detach().double().numpy())
    first = np.take_along_axis(values, values.real.argmax(-1)[..., None], -1)[..., 0]
    return torch.from_numpy(first.real + 1j * np.abs(first.imag))


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_agrees_with_dense_eigenvalues(
    parameters: Callable[..., dict[str, Any]], recurrence: str, exponent: float, rectified: bool
) -> None:
    arguments = parameters((40,), 4, recurrence=recurrence, exponent=exponent, rectified=rectified)
    circuit = Circuit(**arguments, tau_y=0.3, tau_a=torch.linspace(0.5, 2, 4, dtype=DOUBLE))
    state = circuit.steady_state(tol=1e-12, on_failure="ignore")
    report = check_stability(circuit, state)
    expected = leading(circuit, state)
    good = state.converged
    found = report.leading_eigenvalue
    assert good.sum() >= 38
    torch.testing.assert_close(found.real[good], expected.real[good], rtol=0, atol=1e-6)
    assert torch.equal(report.stable, good & (expected.real < 0))
    torch.testing.assert_close(report.margin, -found.real, rtol=0, atol=0, equal_nan=True)
    assert (found.imag[good] >= 0).all()
    assert found.dtype == torch.complex128


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 10, 80])
def test_sizes(circuit: Callable[..., Circuit], n: int) -> None:
    batch = circuit((70 if n < 80 else 3,), n)
    state = batch.steady_state(tol=1e-12, on_failure="ignore")
    real = check_stability(batch, state).leading_eigenvalue.real
    good = state.converged
    expected = leading(batch, state).real
    torch.testing.assert_close(real[good], expected[good], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shapes(circuit: Callable[..., Circuit], batch: tuple[int, ...]) -> None:
    report = check_stability(circuit(batch))
    assert report.leading_eigenvalue.shape == report.stable.shape == report.margin.shape == batch
    assert report.stable.dtype == torch.bool


def test_single_precision_is_checked_in_double(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((20,), 4, dtype=torch.float32)
    state = batch.steady_state()
    report = check_stability(batch, state)
    assert report.margin.dtype == DOUBLE
    torch.testing.assert_close(-report.margin, leading(batch, state).real, rtol=0, atol=1e-5)


def test_theorem_4_4(parameters: Callable[..., dict[str, Any]]) -> None:
    """Equal parameters and W = alpha 11': the eigenvalues are known."""
    n, alpha, b0, tau_y, tau_a = 4, 0.3, 0.6, 0.7, 1.9
    drive = parameters((), n)["input_drive"]
    circuit = Circuit(
        drive, b0**2, None, alpha * torch.ones(n, n, dtype=DOUBLE), tau_y=tau_y, tau_a=tau_a
    )
    a = b0**2 + alpha * float(drive.square().sum())
    known = [-1 / tau_a, -(a**0.5) / tau_y]
    known += np.roots([1, a**0.5 / tau_y + b0**2 / (tau_a * a), a**0.5 / (tau_y * tau_a)]).tolist()
    report = check_stability(circuit)
    assert float(report.margin) == pytest.approx(-max(np.real(known)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("given_state", [False, True])
def test_circuits_without_a_steady_state(
    counterexample: Callable[..., Circuit], given_state: bool
) -> None:
    circuit = counterexample(2)
    state = circuit.steady_state(on_failure="ignore") if given_state else None
    report = check_stability(circuit, state)
    assert not report.stable.any()
    assert report.margin.isnan().all()
    assert report.leading_eigenvalue.real.isnan().all()
    assert "without steady state: 2" in str(report)


@pytest.mark.slow
def test_an_unstable_fixed_point_is_called_unstable() -> None:
    """Algorithm 1 does not ask whether its fixed point is stable; the checker does."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    d, wr = torch.linspace(0.6, 0.9, 7, dtype=DOUBLE).unsqueeze(-1), -one
    circuit = Circuit(d, 0.5, wr, one)
    state = circuit.steady_state("algorithm1", max_iter=2000, on_failure="ignore")
    report = check_stability(circuit, state)
    found = leading(circuit, state).real
    assert torch.equal(report.stable, state.converged & (found < 0))


def test_summary(circuit: Callable[..., Circuit]) -> None:
    text = str(check_stability(circuit((5,), 3)))
    assert text.startswith("StabilityReport of 5 circuits: 5 stable (100.00 %)")
    assert "largest real part: max -" in text
    assert "oscillates in" in text


@pytest.mark.parametrize("recurrence", ["identity", "spectral", "unconstrained"])
def test_a_layer(recurrence: str) -> None:
    torch.manual_seed(0)
    layer = ORGaNICsDEQ(6, 5, recurrence)
    x = torch.randn(2, 3, 6)
    report = check_stability(layer, x)
    assert report.stable.shape == (2, 3)
    assert report.stable.all()
    same = check_stability(layer.circuit(x), layer.steady_state(x))
    assert torch.equal(report.margin, same.margin)
    assert not report.margin.requires_grad


def test_the_check_does_not_change_the_graph() -> None:
    layer = ORGaNICsDEQ(6, 5)
    x = torch.randn(3, 6)
    rates = layer(x)
    check_stability(layer, x)
    rates.sum().backward()
    assert layer.input_weight.grad is not None


class TestCertificate:
    @pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
    @pytest.mark.parametrize("rectified", [False, True])
    @pytest.mark.parametrize("tau_y", [1e-3, 1.0, 1e3])
    def test_it_proves_lyapunov_diagonal_stability(
        self,
        parameters: Callable[..., dict[str, Any]],
        exponent: float,
        rectified: bool,
        tau_y: float,
    ) -> None:
        arguments = parameters(
            (50,), 6, recurrence="identity", exponent=exponent, rectified=rectified, shared=False
        )
        tau_a = torch.linspace(0.2, 5, 6, dtype=DOUBLE)
        circuit = Circuit(**arguments, tau_y=tau_y, tau_a=tau_a)
        certificate = m_matrix_certificate(circuit)
        assert certificate.certified.all()
        assert check_stability(circuit).stable.all()
        y, a = circuit.closed_form()
        root = a ** (1 / exponent)
        pool = (y.relu() if rectified else y.abs()) ** exponent
        damping = torch.diag_embed(root / tau_y + 1 / tau_a) - (
            circuit.normalization_weight * pool[:, None, :] / tau_a[:, None]
        )
        t = certificate.lyapunov_diagonal
        assert (t > 0).all()
        form = t.unsqueeze(-1) * damping
        eigenvalues = torch.linalg.eigvalsh(form + form.mT)
        assert (eigenvalues > 0).all()

    def test_shape(self, circuit: Callable[..., Circuit]) -> None:
        certificate = m_matrix_certificate(circuit((2, 3), 4, recurrence="identity"))
        assert certificate.certified.shape == (2, 3)
        assert certificate.lyapunov_diagonal.shape == (2, 3, 4)

    def test_other_circuits_are_refused(self, circuit: Callable[..., Circuit]) -> None:
        with pytest.raises(ValueError, match="recurrent_weight: got a matrix, expected None"):
            m_matrix_certificate(circuit())


def test_a_layer_is_judged_at_the_state_that_it_returns() -> None:
    """With wr = 3 the fast iteration ends on the middle one of three fixed points."""
    options: dict[str, Any] = {"normalize_drive": False, "dtype": torch.float64}
    layer = ORGaNICsDEQ(1, 1, "unconstrained", "tied", verify_stability=False, **options)
    values = {"recurrent_weight": 3.0, "input_weight": 0.02, "normalization_weight": 1.0}
    for name, value in values.items():
        layer.fill(name, torch.full((1, 1), value, dtype=torch.float64))
    x = torch.ones(1, 1, dtype=torch.float64)
    state = layer.steady_state(x)
    jacobian = layer.circuit(x).jacobian(state.y, state.a)
    leading = torch.linalg.eigvals(jacobian).real.amax(-1)
    report = check_stability(layer, x)
    torch.testing.assert_close(report.leading_eigenvalue.real, leading)
    assert report.stable.tolist() == (leading < 0).tolist()
    assert leading > 0
