"""Proofs of stability, each by itself: none of them may ever prove what is not so."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from _circuits import DOUBLE, random_parameters
from torch import Tensor

from deq_organics import Circuit, check_stability
from deq_organics.stability.cayley import Verdict, frobenius, resolvent, spectral_radius
from deq_organics.stability.discs import side_of_zero
from deq_organics.stability.dissipation import dissipates
from deq_organics.stability.leading import first_guess, rightmost_eigenvalues
from deq_organics.stability.spectrum import (
    _balanced,
    _in_units,
    is_stable,
    leading_eigenvalues,
    verdicts,
)


def by_powers(matrix: Tensor) -> Tensor:
    shift = frobenius(matrix) / matrix.shape[-1] ** 0.5
    return spectral_radius(*resolvent(matrix, shift).transform(torch.zeros_like(shift)))


PROOFS = [by_powers, side_of_zero]


def numpy_real_parts(circuit: Circuit, y: Tensor, a: Tensor) -> np.ndarray:
    return np.linalg.eigvals(circuit.jacobian(y, a).double().numpy()).real.max(-1)


def undamped(size: int, batch: int, generator: torch.Generator) -> Tensor:
    """Skew-symmetric matrices: all eigenvalues are imaginary."""
    matrix = torch.randn(batch, size, size, generator=generator, dtype=DOUBLE)
    return (matrix - matrix.mT) / size**0.5


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("size", [2, 10, 40])
def test_damping_of_known_size_and_sign(proof: Callable[..., Any], size: int) -> None:
    """``K - d I`` with a skew-symmetric K has the real parts ``-d``."""
    generator = torch.Generator().manual_seed(size)
    damping = torch.logspace(-1, -9, 17, dtype=DOUBLE)
    damping = torch.cat([damping, -damping])
    matrix = undamped(size, len(damping), generator)
    matrix = matrix - damping[:, None, None] * torch.eye(size, dtype=DOUBLE)
    # A similarity transform that is exact, so that the matrix is not normal.
    scale = 2.0 ** torch.randint(-3, 4, (len(damping), size), generator=generator)
    verdict = proof(scale.unsqueeze(-1) * matrix / scale.unsqueeze(-2))
    expected = torch.where(damping > 0, int(Verdict.INSIDE), int(Verdict.OUTSIDE))
    decided = verdict != Verdict.UNDECIDED
    assert torch.equal(verdict[decided], expected[decided])
    if proof is side_of_zero:
        assert decided[damping.abs() >= 1e-6].all()
    below_rounding = undamped(size, 20, generator)
    below_rounding.diagonal(dim1=-2, dim2=-1).sub_(1e-18)
    assert (proof(below_rounding) == Verdict.UNDECIDED).all()


@pytest.mark.parametrize("proof", PROOFS)
def test_far_from_normal_and_just_unstable(proof: Callable[..., Any]) -> None:
    """A chain of 2 k neurons, its end fed back: ``(1 + l)^N = 3^(N - 1) feedback``."""
    size = 24
    feedback = 10.0 ** torch.linspace(-14, -8, 40, dtype=DOUBLE)
    matrix = torch.diag(torch.full((size - 1,), 3.0, dtype=DOUBLE), 1).expand(40, -1, -1).clone()
    matrix[:, -1, 0] = feedback
    real = (3.0 ** (size - 1) * feedback) ** (1.0 / size) - 1.0
    matrix.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    assert (real < -0.1).any()
    assert (real > 0.1).any()
    turned = torch.linalg.qr(torch.randn(size, size, dtype=DOUBLE))[0]
    for form in (matrix, matrix.flip(-1, -2), turned @ matrix @ turned.mT):
        verdict = proof(form.contiguous())
        assert not ((verdict == Verdict.INSIDE) & (real > 1e-3)).any()
        assert not ((verdict == Verdict.OUTSIDE) & (real < -1e-3)).any()


def test_an_error_that_is_too_large_proves_nothing() -> None:
    small = torch.zeros(3, 4, 4, dtype=DOUBLE)
    error = torch.tensor([0.5, 1.5, torch.inf], dtype=DOUBLE)
    assert spectral_radius(small, error).tolist() == [
        Verdict.INSIDE,
        Verdict.UNDECIDED,
        Verdict.UNDECIDED,
    ]
    growing = 2.0 * torch.eye(4, dtype=DOUBLE).expand(2, -1, -1)
    error = torch.tensor([1e-3, 2.5], dtype=DOUBLE)
    assert spectral_radius(growing, error).tolist() == [Verdict.OUTSIDE, Verdict.UNDECIDED]


def test_the_resolvents_error_is_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 6, 6, generator=generator, dtype=DOUBLE)
    matrix[:, :3, 3:] = torch.diag_embed(matrix[:, :3, 3:].diagonal(dim1=-2, dim2=-1))
    shift = torch.linalg.eigvals(matrix).abs().amax(-1) + torch.logspace(-7, 1, 9, dtype=DOUBLE)
    found = resolvent(matrix, shift)
    with mpmath.workdps(60):
        for k in range(9):
            exact = (float(shift[k]) * mpmath.eye(6) - mpmath.matrix(matrix[k].tolist())) ** -1
            error = mpmath.mnorm(exact - mpmath.matrix(found.inverse[k].tolist()), "f")
            assert 0 < error <= float(found.error[k])
            assert float(found.error[k]) <= 1e-6 * float(frobenius(found.inverse)[k])


def any_states(circuit: Circuit, seed: int) -> tuple[Tensor, Tensor]:
    """States that are no fixed points, quiet and loud ones."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*circuit.batch_shape, circuit.n)
    loud = 10.0 ** (2.0 * torch.rand(shape[0], 1, generator=generator, dtype=DOUBLE) - 1.5)
    y = loud * torch.randn(shape, generator=generator, dtype=DOUBLE)
    return y, torch.rand(shape, generator=generator, dtype=DOUBLE) + 0.1


@pytest.mark.parametrize(("exponent", "rectified"), [(2.0, False), (2.0, True), (1.5, False)])
@pytest.mark.parametrize("shared", [True, False])
def test_dissipation_proves_only_what_is_so(exponent: float, rectified: bool, shared: bool) -> None:
    """In single precision too; circuits with one mode that sticks out among them."""
    proved_count = unstable = 0
    for seed, spread in enumerate((0.0, 1.0, 2.0)):
        given = random_parameters(
            (60,), 12, exponent=exponent, rectified=rectified, shared=shared, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        tau_y, tau_a = 10.0 ** (spread * torch.rand(2, 12, generator=generator, dtype=DOUBLE))
        circuit = Circuit(**given, tau_y=tau_y, tau_a=tau_a)
        y, a = any_states(circuit, seed)
        real = torch.from_numpy(numpy_real_parts(circuit, y, a))
        proved = dissipates(circuit.flatten(), y, a)
        assert (real[proved] < 0).all()
        proved_count += int(proved.sum())
        unstable += int((real > 0).sum())
    assert proved_count > 40
    assert unstable > 10


@pytest.mark.parametrize("n", [16, 40])
def test_dissipation_is_enough_for_most(n: int) -> None:
    """No eigenvalues, no squarings: the quick proof decides, also beside slow modes."""
    circuit = Circuit(**random_parameters((100,), n))
    state = circuit.steady_state(verify_stability=False)
    assert dissipates(circuit.flatten(), state.y, state.a).float().mean() > 0.9


def test_one_mode_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neuron that is driven strongly: its normalization loop sticks out of what dissipates."""
    generator = torch.Generator().manual_seed(0)
    n, size = 12, 16
    wr = 0.9 * torch.eye(n, dtype=DOUBLE)
    wr = wr + 0.05 * torch.randn(n, n, generator=generator, dtype=DOUBLE)
    d = 0.1 * torch.randn(size, n, generator=generator, dtype=DOUBLE)
    d[:, 0] = torch.linspace(0.5, 2.0, size, dtype=DOUBLE)
    w = torch.rand(n, n, generator=generator, dtype=DOUBLE).fill_diagonal_(0.2)
    circuit = Circuit(d, 0.01, wr, w)
    state, problem = circuit.steady_state(verify_stability=False), circuit.flatten()
    assert (numpy_real_parts(circuit, state.y, state.a) < 0).all()
    assert dissipates(problem, state.y, state.a).all()
    monkeypatch.setattr(
        "deq_organics.stability.dissipation._dissipates_but_for_one_mode",
        lambda jacobian, unit, root: torch.zeros(len(root), dtype=torch.bool),
    )
    assert dissipates(problem, state.y, state.a).sum() < 5


@pytest.mark.slow
@pytest.mark.parametrize("singular_value", [0.5, 1.0, 2.0])
def test_the_rightmost_eigenvalue_is_found_or_nothing(singular_value: float) -> None:
    """Sizes at which the library would not ask for it."""
    found_count = 0
    for n in (24, 32):
        circuit = Circuit(**random_parameters((30,), n, singular_value=singular_value))
        y, a = any_states(circuit, n)
        matrix, unit = _in_units(jacobian := _balanced(circuit.flatten(), y, a))
        leading, proved = rightmost_eigenvalues(matrix, first_guess(jacobian).divided(unit))
        expected = torch.from_numpy(numpy_real_parts(circuit, y, a))
        error = (leading.real * unit - expected).abs()[proved]
        assert (error <= 1e-9 * unit[proved]).all()
        found_count += int(proved.sum())
    assert found_count > 30


def test_a_guess_that_misses_the_leading_eigenvalue_proves_nothing() -> None:
    circuit = Circuit(**random_parameters((20,), 24))
    state = circuit.steady_state(tol=1e-12)
    matrix, unit = _in_units(jacobian := _balanced(circuit.flatten(), state.y, state.a))
    expected = torch.from_numpy(numpy_real_parts(circuit, state.y, state.a))
    guess = first_guess(jacobian).divided(unit)
    for shift in (-0.5, -0.1, 0.1, 0.5):
        moved = guess._replace(edge=guess.edge + shift * guess.extent)
        leading, proved = rightmost_eigenvalues(matrix, moved)
        assert ((leading.real * unit - expected).abs()[proved] <= 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 11, 12, 40])
def test_a_circuit_is_judged_by_itself(n: int) -> None:
    given = random_parameters((30,), n, recurrence="per-circuit", singular_value=2.0)
    circuit = Circuit(**given)
    y, a = any_states(circuit, n)
    problem = circuit.flatten()
    together = verdicts(problem, y, a)
    assert len(together.unique()) == 2
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(verdicts(problem.select(order), y[order], a[order]), together[order])
    alone = [verdicts(problem.select(k), y[k], a[k]) for k in torch.arange(30).split(1)]
    assert torch.equal(torch.cat(alone), together)
    candidates = torch.arange(30) % 3 == 0
    expected = candidates & (together == Verdict.INSIDE)
    assert torch.equal(is_stable(problem, y, a, candidates), expected)


def test_an_explicit_identity_is_proved_by_the_theorem(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_parameters((6,), 20, recurrence="per-circuit")
    wr = given["recurrent_weight"]
    wr[::2] = torch.eye(20, dtype=DOUBLE)
    # Time constants over 40 decades: no computation could tell.
    tau = torch.logspace(-20, 20, 20, dtype=DOUBLE)
    circuit = Circuit(**given, tau_y=tau, tau_a=tau.flip(0))
    y, a = Circuit(**{**given, "recurrent_weight": None}).closed_form()
    assert (verdicts(circuit.flatten(), y, a)[::2] == Verdict.INSIDE).all()
    shared = Circuit(**{**given, "recurrent_weight": wr[0]}, tau_y=tau)
    monkeypatch.setattr("deq_organics.stability.spectrum.dissipates", None)
    assert check_stability(shared, (y, a)).stable.all()
    almost = wr[0].clone()
    almost[0, 1] = 1e-300
    with pytest.raises(TypeError, match="not callable"):
        verdicts(Circuit(**{**given, "recurrent_weight": almost}).flatten(), y, a)


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 16, 64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_units_of_time_do_not_matter(n: int, scale: float) -> None:
    given = random_parameters((8,), n, singular_value=3.0)
    y, a = any_states(Circuit(**given), n)
    plain = Circuit(**given).flatten()
    scaled = Circuit(**given, tau_y=scale, tau_a=scale).flatten()
    assert torch.equal(verdicts(scaled, y, a), verdicts(plain, y, a))
    expected = leading_eigenvalues(plain, y, a)
    torch.testing.assert_close(
        leading_eigenvalues(scaled, y, a) * scale, expected, rtol=1e-8, atol=1e-10
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 16, 64])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e160, torch.inf, torch.nan])
def test_states_out_of_range_are_not_called_stable_wrongly(n: int, size: float) -> None:
    """Nothing is raised either."""
    circuit = Circuit(**random_parameters((4,), n, singular_value=2.0))
    y, a = any_states(circuit, n)
    problem = circuit.flatten()
    for state in ((size * y, a), (y, size * a), (size * y, size * a)):
        stable = verdicts(problem, *state) == Verdict.INSIDE
        leading = leading_eigenvalues(problem, *state)
        with np.errstate(all="ignore"):
            jacobian = circuit.jacobian(*state).numpy()
        for k in range(4):
            if not np.isfinite(jacobian[k]).all():
                assert not stable[k]
                continue
            real = np.linalg.eigvals(jacobian[k]).real.max()
            length = np.abs(jacobian[k]).max()
            assert not (stable[k] and real > 1e-9 * length)
            assert abs(leading[k].real - real) <= 1e-6 * length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_short_products_change_no_verdict(dtype: torch.dtype) -> None:
    circuit = Circuit(**random_parameters((40,), 16, singular_value=2.0)).to(torch.float32)
    y, a = (part.float() for part in any_states(circuit, 3))
    problem = circuit.flatten()
    expected = verdicts(problem, y, a)
    assert len(expected.unique()) == 2
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert torch.equal(verdicts(problem, y, a), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_default_device_is_no_matter() -> None:
    circuit = Circuit(**random_parameters((3,), 64))
    state = circuit.steady_state()
    expected = check_stability(circuit, state)
    with torch.device("meta"):
        report = check_stability(circuit, state)
    assert torch.equal(report.leading_eigenvalue, expected.leading_eigenvalue)
    assert report.stable.all()


@pytest.mark.parametrize("n", [2, 70])
def test_an_empty_batch(n: int) -> None:
    circuit = Circuit(**random_parameters((0,), n))
    report = check_stability(circuit)
    assert report.stable.shape == report.leading_eigenvalue.shape == (0,)
    assert str(report) == "StabilityReport of 0 circuits: 0 stable (none)"
