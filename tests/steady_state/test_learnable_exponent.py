"""Exponents as tensors: one for all, one per neuron, one per circuit and neuron."""

from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from scipy.optimize import root
from torch import Tensor

from deq_organics import (
    Circuit,
    check_stability,
    coupled_oscillators,
    critical_drive_2d,
    cross_spectrum,
    energy,
    energy_form,
    fixed_points_2d,
    m_matrix_certificate,
    normal_modes,
    oscillator_eigenvalues,
    simulate,
)

RECURRENCES = ("identity", "shared", "per-circuit")


def _given(recurrence: str, rectified: bool, n: int = 4, **options: Any) -> dict[str, Any]:
    given = random_parameters((3,), n, recurrence=recurrence, rectified=rectified, **options)
    if rectified:
        # Silent neurons too.
        given["input_drive"] = given["input_drive"] * (1.0 - 2.0 * (torch.arange(n) % 3 == 1))
    return given


def _exponents(*shape: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.2 + 2.0 * torch.rand(shape, generator=generator, dtype=DOUBLE)


def _flow(state: Any, given: dict[str, Any], m: Any, row: int) -> Any:
    """Eq. 1 or 87 of one circuit, by numpy alone."""
    part = {
        k: v[row].numpy() if isinstance(v, Tensor) and v.ndim > (2 if "weight" in k else 1) else v
        for k, v in given.items()
    }
    d, c = part["input_drive"], np.asarray(part["inhibitory_drive"])
    wr, w = (
        np.eye(len(d)) if v is None else np.asarray(v)
        for v in (part["recurrent_weight"], part["normalization_weight"])
    )
    y, a = np.split(state, 2)
    a = np.maximum(a, 1e-300)
    active = np.maximum(y, 0) if part["rectified"] else y
    return np.concatenate(
        [
            -y + d + (1 - a ** (1 / m)) * (wr @ active),
            -a + c + w @ (np.abs(active) ** m * a),
        ]
    )


@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("rectified", [False, True])
def test_the_state_solves_the_equations_of_each_neuron(recurrence: str, rectified: bool) -> None:
    """scipy's root finder, started nearby, stays where it is."""
    given = _given(recurrence, rectified)
    for shape in ((4,), (3, 4)):
        exponent = _exponents(*shape)
        state = Circuit(**{**given, "exponent": exponent}).steady_state(tol=1e-12)
        assert state.converged.all()
        for row in range(3):
            m = exponent.expand(3, 4)[row].numpy()
            here = torch.cat([state.y[row], state.a[row]]).numpy()
            found = root(lambda x, m=m, row=row: _flow(x, given, m, row), here * 1.001, tol=1e-13)
            assert abs(found.x - here).max() < 1e-9
            active = state.y[row].clamp(min=0)
            torch.testing.assert_close(state.rates[row], active ** exponent.expand(3, 4)[row])


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("rectified", [False, True])
def test_equal_exponents_are_those_of_a_number(
    exponent: float, recurrence: str, rectified: bool
) -> None:
    given = _given(recurrence, rectified)
    number = Circuit(**{**given, "exponent": exponent})
    expected = number.steady_state(tol=1e-12)
    for shape in ((), (3, 4)):
        circuit = Circuit(**{**given, "exponent": torch.full(shape, exponent, dtype=DOUBLE)})
        found = circuit.steady_state(tol=1e-12)
        for name in ("y", "a", "rates"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11
            )
        assert torch.equal(found.status, expected.status)
        state = (expected.y, expected.a)
        torch.testing.assert_close(circuit.jacobian(*state), number.jacobian(*state))
        if recurrence == "identity":
            for mine, its in zip(circuit.closed_form(), number.closed_form(), strict=True):
                torch.testing.assert_close(mine, its)


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("rectified", [False, True])
def test_gradients(recurrence: str, rectified: bool) -> None:
    """By the exponents against finite differences: in reverse, forward and twice."""
    given = random_parameters((2,), 3, recurrence=recurrence, rectified=rectified)

    def state(m: Tensor) -> tuple[Tensor, Tensor]:
        circuit = Circuit(**{**given, "exponent": m})
        found = circuit.steady_state(tol=1e-13, on_failure="error", verify_stability=False)
        return found.rates, found.a

    shape = {"identity": (), "shared": (3,), "per-circuit": (2, 3)}[recurrence]
    exponent = (_exponents(*shape).requires_grad_(),)
    assert torch.autograd.gradcheck(
        state, exponent, check_forward_ad=True, rtol=1e-4, atol=1e-6, fast_mode=True
    )
    assert torch.autograd.gradgradcheck(state, exponent, rtol=1e-3, atol=1e-5, fast_mode=True)


def test_transforms_and_autograd_agree() -> None:
    given = random_parameters((2,), 3)
    exponent = _exponents(3)

    def rates(m: Tensor) -> Tensor:
        return Circuit(**{**given, "exponent": m}).steady_state(tol=1e-13).rates

    reverse = torch.func.jacrev(rates)(exponent)
    torch.testing.assert_close(torch.func.jacfwd(rates)(exponent), reverse)
    several = torch.stack([exponent, exponent + 0.3])
    torch.testing.assert_close(
        torch.func.vmap(rates)(several), torch.stack([rates(m) for m in several])
    )
    torch.testing.assert_close(
        torch.func.hessian(lambda m: rates(m).sum())(exponent),
        torch.autograd.functional.hessian(lambda m: rates(m).sum(), exponent),
    )


def test_gains_take_the_exponent_along() -> None:
    """``c = (b0 sigma)^m`` has a derivative by ``m`` too, checked by differences."""
    exponent, z = vector(1.5, 2.5).requires_grad_(), vector(0.4, 0.1)

    def rates(m: Tensor) -> Tensor:
        return Circuit.from_gains(z, 1.0, 0.5, 0.3, None, POOL, exponent=m).steady_state().rates

    assert torch.autograd.gradcheck(rates, (exponent,))
    circuit = Circuit.from_gains(z, 1.0, 0.5, 0.3, None, POOL, exponent=exponent)
    torch.testing.assert_close(circuit.inhibitory_drive, vector(0.15**1.5, 0.15**2.5))


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_closed_forms_of_the_theory(rectified: bool, shape: tuple[int, ...]) -> None:
    """Eigenvalues of the oscillators, the certificate and the energy, by the Jacobian."""
    given = _given("identity", rectified)
    circuit = Circuit(**{**given, "exponent": _exponents(*shape)}, tau_y=2.0, tau_a=5.0)
    y, a = circuit.closed_form()
    for part in circuit.vector_field(y, a):
        assert part.abs().max() < 1e-12
    jacobian = circuit.jacobian(y, a)
    found = oscillator_eigenvalues(coupled_oscillators(circuit))
    expected = torch.linalg.eigvals(jacobian)
    gaps = (found.unsqueeze(-1) - expected.unsqueeze(-2)).abs()
    assert gaps.amin(-1).max() < 1e-6
    assert gaps.amin(-2).max() < 1e-6
    assert m_matrix_certificate(circuit).certified.all()
    form = energy_form(circuit)
    decline = torch.linalg.eigvalsh(form @ jacobian + jacobian.mT @ form)
    assert decline.max() < 1e-9 * form.abs().max()
    nudge = 1e-5 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    if not rectified:
        near = energy(circuit, y + nudge[:, :4], a + nudge[:, 4:])
        torch.testing.assert_close(
            near, torch.einsum("bi,bij,bj->b", nudge, form, nudge), rtol=1e-2, atol=0
        )


def test_normal_modes_want_equal_exponents() -> None:
    pool = torch.ones(3, 3, dtype=DOUBLE)
    drive = vector(0.3, 0.2, 0.5)
    number = normal_modes(Circuit(drive, 0.2, None, pool, exponent=3.0))
    equal = normal_modes(Circuit(drive, 0.2, None, pool, exponent=torch.tensor(3.0).double()))
    torch.testing.assert_close(equal.eigenvalues, number.eigenvalues)
    with pytest.raises(ValueError, match="exponent: got entries that differ"):
        normal_modes(Circuit(drive, 0.2, None, pool, exponent=vector(2.0, 2.0, 3.0)))


@pytest.mark.parametrize("wr", [0.5, 2.5, -0.4])
def test_two_dimensional_circuits_each_with_an_exponent(wr: float) -> None:
    one = torch.ones(1, 1, dtype=DOUBLE)
    m = torch.linspace(1.2, 4.0, 6, dtype=DOUBLE)
    drive = torch.full((6, 1), 0.05, dtype=DOUBLE)
    together = Circuit(drive, 0.1, wr * one, one, exponent=m[:, None])
    found, critical = fixed_points_2d(together), critical_drive_2d(together)
    for row, value in enumerate(m.tolist()):
        alone = Circuit(drive[row], 0.1, wr * one, one, exponent=value)
        expected = fixed_points_2d(alone)
        torch.testing.assert_close(found.y[row], expected.y, equal_nan=True)
        assert found.count[row] == expected.count
        torch.testing.assert_close(critical[row], critical_drive_2d(alone))


@pytest.mark.slow
def test_dynamics_spectra_and_verdicts() -> None:
    given = _given("shared", False)
    circuit = Circuit(**{**given, "exponent": _exponents(4)}, tau_y=2.0, tau_a=3.0)
    state = circuit.steady_state(tol=1e-12)
    moving = simulate(circuit, torch.linspace(0, 200, 3, dtype=DOUBLE))
    torch.testing.assert_close(moving.y[-1], state.y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moving.rates[-1], state.rates, rtol=1e-3, atol=1e-5)
    report = check_stability(circuit, state)
    eigenvalues = torch.linalg.eigvals(circuit.jacobian(state.y, state.a))
    torch.testing.assert_close(report.leading_eigenvalue.real, eigenvalues.real.amax(-1))
    power = cross_spectrum(circuit, torch.tensor([0.0, 0.05]).double()).power
    assert torch.isfinite(power).all()
    followed = circuit.steady_state(start="rest")
    torch.testing.assert_close(followed.y, state.y, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("recurrence", ["identity", "shared"])
def test_drives_of_any_size_in_single_precision(scale: float, recurrence: str) -> None:
    """Powers of small drives are zero in float32; a pool of them need not be."""
    given = random_parameters((3,), 4, recurrence=recurrence)
    m = vector(2.0, 2.1, 2.0, 1.9)
    expected = Circuit(**{**given, "exponent": m}).steady_state(tol=1e-10)
    # Each column in the unit of its neuron: y scales, a does not.
    given["input_drive"] = given["input_drive"] * scale
    given["normalization_weight"] = given["normalization_weight"] / scale**m
    single: dict[str, Any] = {**given}
    single |= {k: v.float() for k, v in given.items() if isinstance(v, Tensor)}
    found = Circuit(**{**single, "exponent": m.float()}).steady_state()
    assert found.converged.all()
    torch.testing.assert_close(found.y.double() / scale, expected.y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.a.double(), expected.a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("exponent", "error", "message"),
    [
        (vector(2.0, 0.5, 2.0), ValueError, "exponent: got values from 0.5 to 2, expected numbers"),
        (vector(2.0, 65.0, 2.0), ValueError, "exponent: got values from 2 to 65"),
        (vector(2.0, float("nan"), 2.0), ValueError, "exponent: got 1 NaN"),
        (vector(2.0, 2.0), ValueError, r"exponent: got shape \(2,\)"),
        (torch.full((3,), 2.0), ValueError, "exponent: got torch.float32, expected torch.float64"),
        (torch.full((3,), 2), TypeError, "exponent: got dtype torch.int64"),
        (torch.full((5, 3), 2.0).double(), ValueError, "leading dimensions: got"),
        ([2.0, 2.0, 2.0], TypeError, "exponent: got"),
        (0.5, ValueError, "exponent: got 0.5"),
    ],
)
def test_bad_exponents(exponent: Any, error: type[Exception], message: str) -> None:
    given = random_parameters((4,), 3)
    with pytest.raises(error, match=message):
        Circuit(**{**given, "exponent": exponent})
    with pytest.raises(error, match=message):
        Circuit.from_gains(
            torch.ones(4, 3, dtype=DOUBLE),
            1.0,
            1.0,
            0.5,
            None,
            torch.eye(3).double(),
            exponent=exponent,
        )


def test_kernels_say_that_they_know_numbers_only() -> None:
    given = random_parameters((4,), 3, dtype=torch.float32)
    circuit = Circuit(**{**given, "exponent": torch.tensor(2.0)})
    assert circuit.backend_for().backend == "torch"
    assert "an exponent that is a tensor" in circuit.backend_for().reason
    for backend in ("native", "cuda"):
        with pytest.raises(RuntimeError, match="does not support"):
            circuit.steady_state(backend=backend)
