"""Faults that adversarial use once found, one test each: they must not come back."""

from typing import Any

import pytest
import torch
from _circuits import random_parameters
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev

from deq_organics import Circuit, ORGaNICsDEQ, m_matrix_certificate
from deq_organics.steady_state.methods import SOLVERS

D = torch.float64
ONE = torch.ones(1, 1, dtype=D)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_forward_over_forward_is_refused() -> None:
    d, c, w = rand(3), 0.5 + rand(3, seed=1), rand(3, 3, seed=2)
    wr = 0.3 * rand(3, 3, seed=3)

    def f(d: Tensor) -> Tensor:
        return Circuit(d, c, wr, w).steady_state(tol=1e-12).y.square().sum()

    with pytest.raises(NotImplementedError, match="forward-mode"):
        jacfwd(jacfwd(f))(d)
    torch.testing.assert_close(jacfwd(jacrev(f))(d), jacrev(jacrev(f))(d))


def test_forward_ad_of_one_circuit() -> None:
    with forward_ad.dual_level():
        drive = forward_ad.make_dual(torch.full((2, 1), 0.1, dtype=D), torch.ones(2, 1, dtype=D))
        Circuit(drive, 0.5, -ONE, ONE).steady_state()


def test_forward_ad_of_an_unbatched_circuit() -> None:
    with forward_ad.dual_level():
        drive = forward_ad.make_dual(rand(3), torch.ones(3, dtype=D))
        Circuit(drive, 0.5, 0.3 * rand(3, 3), rand(3, 3)).steady_state()


@pytest.mark.slow
@pytest.mark.parametrize("per_circuit_semisaturation", [False, True])
@pytest.mark.parametrize("size", [2, 5, 16])
def test_a_neighbour_changes_no_bit(size: int, per_circuit_semisaturation: bool) -> None:
    changed = 0
    for seed in range(4):
        wr = rand(2, 2, seed=seed) - 0.5
        d, w = rand(size, 2, seed=seed + 50), rand(2, 2, seed=seed + 99)
        c = 0.1 + rand(*((size,) if per_circuit_semisaturation else ()), 2, seed=seed + 7)
        first = Circuit(d, c, wr, w).steady_state(tol=1e-10, on_failure="ignore")
        d2, c2 = d.clone(), c.clone()
        d2[0] = 10.0
        if per_circuit_semisaturation:
            c2[0] = 1e-3
        second = Circuit(d2, c2, wr, w).steady_state(tol=1e-10, on_failure="ignore")
        changed += not torch.equal(first.y[1:], second.y[1:])
    assert changed == 0


def test_simple_fixed_point_iter() -> None:
    Circuit(rand(4, 3), 0.5, None, rand(3, 3)).steady_state("simple_fixed_point_iter")


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS[2:5])
def test_torchdeq_counterexample_beside_good_ones(solver: str) -> None:
    d = torch.full((4, 1), 0.1, dtype=D)
    d[0] = 1.0
    state = Circuit(d, 0.5, -ONE, ONE).steady_state(solver, on_failure="ignore")
    assert state.converged.tolist() == [False, True, True, True]


def test_anderson_survives_a_singular_system() -> None:
    Circuit(torch.ones(2, 1), 0.5, -torch.ones(1, 1), torch.ones(1, 1)).steady_state(
        "anderson", on_failure="ignore"
    )


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", [None, 0.5 * torch.eye(2)])
@pytest.mark.parametrize("size", [1e15, 1e20])
def test_overflow_is_not_called_converged(recurrence: Tensor | None, size: float) -> None:
    state = Circuit(torch.full((2,), size), 0.5, recurrence, torch.ones(2, 2)).steady_state(
        on_failure="ignore"
    )
    assert not (state.converged and state.residual.isnan())


def test_algorithm1_returns_no_nan_under_ignore() -> None:
    state = Circuit(rand(2, 3), 1.0, torch.zeros(3, 3, dtype=D), rand(3, 3)).steady_state(
        "algorithm1", on_failure="ignore"
    )
    assert torch.isfinite(state.y).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("recurrence", [None, 0.5 * torch.eye(3, dtype=D)])
def test_empty_batch(solver: str, recurrence: Tensor | None) -> None:
    state = Circuit(rand(0, 3), 1.0, recurrence, rand(3, 3)).steady_state(solver)
    assert state.y.shape == (0, 3)


def test_empty_batch_of_a_layer() -> None:
    layer = ORGaNICsDEQ(4, 3)
    layer.recurrent_weight = 0.5 * torch.eye(3)
    assert layer(torch.ones(0, 4)).shape == (0, 3)


def test_meta_device() -> None:
    ORGaNICsDEQ(4, 3, device="meta")


def test_dtype_must_be_a_dtype() -> None:
    with pytest.raises(TypeError, match="dtype"):
        ORGaNICsDEQ(4, 3, dtype="float32")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["vector_field", "jacobian"])
@pytest.mark.parametrize(
    "state", [(torch.ones(4, 3), torch.ones(4, 3)), (torch.ones(5, 3).float(),) * 2]
)
def test_state_of_other_leading_shape_or_dtype(method: str, state: tuple[Any, ...]) -> None:
    circuit = Circuit(rand(5, 3), 1.0, rand(3, 3), rand(3, 3))
    state = state if state[0].shape[0] == 5 else tuple(s.double() for s in state)
    if method == "jacobian" and state[0].shape[0] == 4:
        pytest.skip("does not depend on the drive")
    with pytest.raises(ValueError, match=r"^y: "):
        getattr(circuit, method)(*state)


def test_autocast_does_not_reach_the_equations() -> None:
    c = Circuit(rand(5, 3).float(), 1.0, None, rand(3, 3).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = c.closed_form()[1]
        certificate = m_matrix_certificate(c)
    torch.testing.assert_close(low, c.closed_form()[1])
    torch.testing.assert_close(
        certificate.lyapunov_diagonal, m_matrix_certificate(c).lyapunov_diagonal
    )


@pytest.mark.slow
def test_converged_means_within_tol() -> None:
    g = torch.Generator().manual_seed(0)
    wr = torch.randn(500, 3, 3, generator=g)
    wr = 3 * wr / torch.linalg.matrix_norm(wr, 2, keepdim=True)
    d, c, w = (torch.rand(500, *s, generator=g) for s in ((3,), (3,), (3, 3)))
    state = Circuit(d, c + 1e-3, wr, w).steady_state(tol=2e-6, on_failure="ignore")
    assert (state.residual[state.converged] <= 2e-6).all()


def test_large_and_small_inputs_count() -> None:
    # A gain computed from such inputs saturates, at 0 too.
    layer = ORGaNICsDEQ(4, 3, input_gain="tied")
    x = torch.ones(4)
    torch.testing.assert_close(layer.circuit(1e20 * x).input_drive.norm() > 0, torch.tensor(True))
    torch.testing.assert_close(layer.circuit(1e-30 * x).input_drive.norm() > 0, torch.tensor(True))


@pytest.mark.slow
def test_a_weakly_damped_circuit_is_solved() -> None:
    drive, wr, w = (
        torch.tensor([[value]], dtype=D)
        for value in (0.005419029419117786, 2.114993567286141, 0.19955962746199854)
    )
    circuit = Circuit(drive, 0.0001542513296828156, wr, w)
    state = circuit.steady_state(on_failure="ignore")
    assert state.converged.all()


@pytest.mark.slow
def test_warning_points_at_the_caller() -> None:
    with pytest.warns(RuntimeWarning) as seen:
        Circuit(torch.ones(1, 1), 0.5, -torch.ones(1, 1), torch.ones(1, 1)).steady_state()
    assert seen[0].filename == __file__


def test_a_fixed_point_at_infinity_is_passed_over() -> None:
    """At ``a = 1e40`` the equations hold by rounding only; the state is that for ``Wr = 0``."""
    arguments = random_parameters(
        (5,), 2, recurrence="per-circuit", shared=False, singular_value=4e-41, exponent=1.0
    )
    state = Circuit(**arguments, tau_y=10.0).steady_state(tol=1e-9, on_failure="ignore")
    assert state.converged.all()
    drive, pool = arguments["input_drive"], arguments["normalization_weight"]
    leak = torch.eye(2, dtype=D) - pool * drive.abs().unsqueeze(-2)
    torch.testing.assert_close(state.y, drive, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        state.a, torch.linalg.solve(leak, arguments["inhibitory_drive"]), rtol=1e-6, atol=1e-6
    )
