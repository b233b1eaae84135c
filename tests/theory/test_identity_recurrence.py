"""Theorems 4.1-4.5 (Wr = I) over 10,000 random circuits each, against dense eigenvalues."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from _draws import DOUBLE, TOTAL, Draw, equal_circuits, identity_circuits, matched_deviation
from torch import Tensor

from deq_organics import (
    Circuit,
    coupled_oscillators,
    energy,
    energy_form,
    m_matrix_certificate,
    normal_modes,
    oscillator_eigenvalues,
)

ROUNDING = 1e-13


def jacobian(circuit: Circuit) -> Tensor:
    return circuit.jacobian(*circuit.closed_form())


def counted(circuits: Iterable[Circuit]) -> Iterator[Circuit]:
    """The same circuits; fails in the end unless they were 10,000."""
    count = 0
    for circuit in circuits:
        count += math.prod(circuit.batch_shape)
        yield circuit
    assert count == TOTAL >= 10_000


def unit_diagonal(form: Tensor) -> Tensor:
    """A congruent form with a diagonal of ones where it is positive."""
    diagonal = form.diagonal(dim1=-2, dim2=-1)
    return torch.where(diagonal > 0, diagonal, 1.0).rsqrt()


@pytest.mark.slow
def test_theorem_4_1_and_4_2_certificates_agree_with_dense_eigenvalues() -> None:
    for circuit in counted(identity_circuits(1)):
        certificate = m_matrix_certificate(circuit)
        assert certificate.certified.all()
        t = certificate.lyapunov_diagonal
        assert (t > 0).all()
        form = t.unsqueeze(-1) * coupled_oscillators(circuit).damping
        form = form + form.mT
        scale = unit_diagonal(form)
        form = scale.unsqueeze(-1) * form * scale.unsqueeze(-2)
        assert (torch.linalg.eigvalsh(form) > 0).all()
        assert (torch.linalg.eigvals(jacobian(circuit)).real < 0).all()


@pytest.mark.slow
def test_theorem_4_3_the_splitting_converges() -> None:
    """The damping matrix is M - N, N >= 0, and the spectral radius of M^-1 N is below 1."""
    for circuit in counted(identity_circuits(2)):
        damping = coupled_oscillators(circuit).damping
        y, a = circuit.closed_form()
        pool = damping.diagonal(dim1=-2, dim2=-1)
        off_diagonal = damping - torch.diag_embed(pool)
        assert (off_diagonal <= 0).all()
        main = (
            1.0 / circuit.tau_a
            + torch.where(
                circuit.input_drive > 0
                if circuit.rectified
                else torch.ones_like(a, dtype=torch.bool),
                circuit.firing_rates(y, a)[2],
                1.0,
            )
            / circuit.tau_y
        )
        splitting = (torch.diag_embed(main) - damping) / main.unsqueeze(-1)
        radius = torch.linalg.eigvals(splitting).abs().amax(-1)
        assert (radius < 1).all()


@pytest.mark.slow
def test_equation_8_has_the_eigenvalues_of_the_jacobian() -> None:
    worst = 0.0
    for circuit in counted(identity_circuits(3)):
        found = oscillator_eigenvalues(coupled_oscillators(circuit))
        worst = max(worst, matched_deviation(found, torch.linalg.eigvals(jacobian(circuit))).max())
    assert worst < 1e-8


@pytest.mark.slow
def test_theorem_4_4_the_closed_form_is_that_of_dense_eigenvalues() -> None:
    worst, oscillating = 0.0, 0
    for circuit in counted(equal_circuits(4)):
        modes = normal_modes(circuit)
        dense = torch.linalg.eigvals(jacobian(circuit))
        worst = max(worst, matched_deviation(modes.eigenvalues, dense).max())
        oscillates = modes.frequency > 0
        oscillating += int(oscillates.sum())
        assert torch.equal(oscillates, modes.damping_ratio < 1)
        imaginary = modes.pool.imag.amax(-1)
        assert torch.allclose(imaginary[oscillates], 2 * math.pi * modes.frequency[oscillates])
        size = modes.pool[..., 0].abs()
        real = -modes.damping_ratio * size
        assert torch.allclose(real[oscillates], modes.pool[..., 0].real[oscillates])
    assert worst < 1e-8
    assert 1_000 < oscillating < 9_000


@pytest.mark.slow
def test_theorem_4_5_the_energy_does_not_grow_along_the_linearized_flow() -> None:
    """d/dt x^T P x = x^T (P J + J^T P) x <= 0 for every x, that is along the whole flow."""
    for circuit in counted(identity_circuits(5)):
        form, j = energy_form(circuit), jacobian(circuit)
        assert torch.allclose(form, form.mT)
        scale = unit_diagonal(form)
        rate = form @ j
        rate = scale.unsqueeze(-1) * (rate + rate.mT) * scale.unsqueeze(-2)
        size = torch.linalg.matrix_norm(j, 2)
        assert (torch.linalg.eigvalsh(rate).amax(-1) <= ROUNDING * size).all()
        assert (
            torch.linalg.eigvalsh(scale.unsqueeze(-1) * form * scale.unsqueeze(-2)) > -1e-12
        ).all()


def test_energy_along_trajectories_of_the_linearized_flow() -> None:
    """The same, seen along the flow itself, which mixes all directions."""
    draw = Draw(6)
    for circuit in identity_circuits(6):
        if circuit.n not in (2, 5):
            continue
        form, j = energy_form(circuit), jacobian(circuit)
        x = draw.gaussian(*circuit.batch_shape, 2 * circuit.n)
        slow = torch.maximum(circuit.tau_y, circuit.tau_a).amax(-1)
        step = torch.matrix_exp(j * (0.05 * slow)[..., None, None])
        before = (x.unsqueeze(-2) @ form @ x.unsqueeze(-1)).flatten()
        for _ in range(20):
            x = (step @ x.unsqueeze(-1)).squeeze(-1)
            after = (x.unsqueeze(-2) @ form @ x.unsqueeze(-1)).flatten()
            assert (after <= before * (1 + 1e-9) + 1e-12).all()
            before = after


def test_the_form_is_half_the_hessian_of_the_energy() -> None:
    for circuit in identity_circuits(7):
        if circuit.n != 3:
            continue
        first = Circuit(
            circuit.input_drive[0],
            circuit.inhibitory_drive[0],
            None,
            circuit.normalization_weight[0],
            circuit.tau_y[0],
            circuit.tau_a[0],
            circuit.exponent,
            circuit.rectified,
        )
        y, a = first.closed_form()

        def value(state: Tensor, circuit: Circuit = first) -> Tensor:
            return energy(circuit, state[:3], state[3:])

        hessian = torch.autograd.functional.hessian(value, torch.cat([y, a]))
        torch.testing.assert_close(hessian / 2, energy_form(first), rtol=1e-9, atol=1e-12)
        assert float(value(torch.cat([y, a]))) == pytest.approx(0, abs=1e-20)


def test_equation_14() -> None:
    """In 2D: (tau_y / tau_a) sqrt(c + w d^2) (y - ys)^2 + (sqrt(a) y - d)^2, up to a factor."""
    draw = Draw(8)
    d, c, w = draw.gaussian(10_000, 1), draw.decades(4, 10_000, 1), draw.decades(4, 10_000, 1, 1)
    tau_y, tau_a = draw.decades(4, 10_000, 1), draw.decades(4, 10_000, 1)
    y, a = draw.gaussian(2, 10_000, 1), draw.uniform(2, 10_000, 1)
    value = energy(Circuit(d, c, None, w, tau_y, tau_a), y, a)
    root = (c + w[..., 0] * d**2).sqrt()
    expected = (tau_y / tau_a * root * (y - d / root) ** 2 + (a.sqrt() * y - d) ** 2).squeeze(-1)
    ratio = value / expected
    assert torch.allclose(ratio[0], ratio[1], rtol=1e-9)


def test_undriven_neurons_do_not_count() -> None:
    draw = Draw(9)
    d = draw.gaussian(4)
    d[1] = 0.0
    circuit = Circuit(d, 0.3, None, draw.uniform(4, 4))
    y, a = circuit.closed_form()
    aside = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=DOUBLE)
    assert float(energy(circuit, y + aside, a + aside)) == pytest.approx(0, abs=1e-20)
    assert float(energy(circuit, y + 1.0, a)) > 0


@pytest.mark.slow
def test_modes_differentiate() -> None:
    """The oscillation's frequency and damping, by every parameter that they depend on."""
    draw = Draw(10)
    d, alpha, c = draw.gaussian(3, 4), 5 * draw.uniform(3, 1, 1), 0.1 * draw.uniform(3, 1)
    tau_y, tau_a = draw.uniform(3, 1) + 1, draw.uniform(3, 1) + 2
    inputs = [tensor.requires_grad_() for tensor in (d, alpha, c, tau_y, tau_a)]

    def function(
        d: Tensor, alpha: Tensor, c: Tensor, tau_y: Tensor, tau_a: Tensor
    ) -> tuple[Tensor, ...]:
        modes = normal_modes(
            Circuit(d, c.expand(3, 4), None, alpha.expand(3, 4, 4), tau_y.expand(3, 4), tau_a)
        )
        return modes.frequency, modes.damping_ratio, torch.view_as_real(modes.eigenvalues)

    assert torch.autograd.gradcheck(function, inputs)


def test_a_silent_circuit_has_no_common_mode() -> None:
    circuit = Circuit(
        -torch.ones(2, 3, dtype=DOUBLE),
        1.0,
        None,
        torch.ones(3, 3, dtype=DOUBLE),
        2.0,
        rectified=True,
    )
    modes = normal_modes(circuit)
    assert modes.frequency.isnan().all()
    assert modes.damping_ratio.isnan().all()
    assert torch.equal(
        modes.eigenvalues.real.sort(-1).values[0], torch.tensor([-1.0] * 3 + [-0.5] * 3).double()
    )


@pytest.mark.parametrize("function", [coupled_oscillators, normal_modes, energy_form])
def test_other_recurrent_weights_are_refused(function: Callable[..., Any]) -> None:
    eye = torch.eye(2)
    with pytest.raises(ValueError, match="recurrent_weight: got a matrix, expected None"):
        function(Circuit(torch.ones(2), 1.0, 0.5 * eye, eye + 1))


@pytest.mark.parametrize("name", ["tau_y", "tau_a", "inhibitory_drive", "normalization_weight"])
def test_theorem_4_4_is_about_equal_neurons(name: str) -> None:
    ones = torch.ones(2)
    arguments: dict[str, Any] = {
        "input_drive": ones,
        "inhibitory_drive": ones,
        "recurrent_weight": None,
        "normalization_weight": torch.ones(2, 2),
        "tau_y": ones,
        "tau_a": ones,
    }
    unequal = arguments[name].clone()
    unequal[0] = 2.0
    with pytest.raises(ValueError, match=f"{name}: got entries that differ, expected equal ones"):
        normal_modes(Circuit(**{**arguments, name: unequal}))


@pytest.mark.parametrize(
    ("y", "a", "message"),
    [
        (torch.ones(3), torch.ones(2), r"y: got shape \(3,\), expected \(..., 2\)"),
        (torch.ones(2), torch.full((2,), torch.nan), "a: got 2 NaN or infinite values"),
        (torch.ones(2).double(), torch.ones(2), "y: got torch.float64, expected torch.float32"),
    ],
)
def test_states_that_do_not_fit(y: Tensor, a: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        energy(Circuit(torch.ones(2), 1.0, None, torch.ones(2, 2)), y, a)
