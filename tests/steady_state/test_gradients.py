"""Implicit gradients against finite differences, an unrolled solve and the ODE's end point."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, MODELS, RECURRENCES
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from deq_organics import AdjointWarning, Circuit, SteadyState, SteadyStateError, simulate
from deq_organics.problem import Problem
from deq_organics.steady_state.backends import by_torch

TOL = 1e-13
LEAVES = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")


def as_function(
    parameters: Callable[..., dict[str, Any]], **choice: Any
) -> tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor]]:
    """``(y, a)`` as a function of the circuit's tensors, and these as leaves."""
    arguments = parameters((2,), 2, **choice)
    names = [name for name in LEAVES if arguments[name] is not None]
    leaves = [arguments[name].clone().requires_grad_() for name in names]
    if arguments["recurrent_weight"] is not None:  # keep away from singular Jacobians
        leaves[2] = (0.8 * leaves[2]).detach().requires_grad_()

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        values = {**arguments, **dict(zip(names, tensors, strict=True))}
        state = Circuit(**values).steady_state(tol=TOL, on_failure="error")
        return state.y, state.a

    return function, leaves


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_gradcheck(
    parameters: Callable[..., dict[str, Any]], recurrence: str, exponent: float, rectified: bool
) -> None:
    function, leaves = as_function(
        parameters, recurrence=recurrence, exponent=exponent, rectified=rectified
    )
    assert gradcheck(function, leaves, check_forward_ad=True)


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), [(2.0, False), (2.0, True), (3.0, False)])
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_second_derivatives(
    parameters: Callable[..., dict[str, Any]], recurrence: str, exponent: float, rectified: bool
) -> None:
    function, leaves = as_function(
        parameters, recurrence=recurrence, exponent=exponent, rectified=rectified, seed=3
    )
    assert gradgradcheck(function, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("signs", [(1, 1, -1), (-1, -1, -1)])
def test_gradcheck_with_silent_neurons(
    parameters: Callable[..., dict[str, Any]], signs: tuple[int, ...]
) -> None:
    arguments = parameters((2,), 3, rectified=True)
    sign = torch.tensor(signs).double()
    drive = (sign * arguments["input_drive"]).requires_grad_()
    wr = (0.5 * arguments["recurrent_weight"]).requires_grad_()

    def function(drive: Tensor, wr: Tensor) -> Tensor:
        state = Circuit(**{**arguments, "input_drive": drive, "recurrent_weight": wr})
        return state.steady_state(tol=TOL, on_failure="error").y

    assert gradcheck(function, (drive, wr), check_forward_ad=True)


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_agrees_with_an_unrolled_solve(
    parameters: Callable[..., dict[str, Any]], exponent: float, rectified: bool
) -> None:
    """Backpropagation through 400 plain steps of the circuit's own map."""
    arguments = parameters((3,), 4, exponent=exponent, rectified=rectified)
    arguments["normalization_weight"] = 0.2 * arguments["normalization_weight"]
    arguments["inhibitory_drive"] = 0.5 + arguments["inhibitory_drive"]
    arguments["recurrent_weight"] = 0.7 * arguments["recurrent_weight"]
    leaves = [arguments[name].clone().requires_grad_() for name in LEAVES]
    circuit = Circuit(**{**arguments, **dict(zip(LEAVES, leaves, strict=True))})
    y, a = torch.zeros(3, 4, dtype=DOUBLE), circuit.inhibitory_drive.expand(3, 4)
    for _ in range(400):
        dy, da = circuit.vector_field(y, a)
        y, a = y + 0.7 * dy, a + 0.7 * da
    state = circuit.steady_state(tol=TOL)
    torch.testing.assert_close(state.y, y, rtol=0, atol=1e-11)
    generator = torch.Generator().manual_seed(0)
    v, u = torch.randn(2, 3, 4, generator=generator, dtype=DOUBLE)
    expected = torch.autograd.grad((v * y + u * a).sum(), leaves)
    found = torch.autograd.grad((v * state.y + u * state.a).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_agrees_with_the_ode(parameters: Callable[..., dict[str, Any]]) -> None:
    """A central difference of the trajectory's end point."""
    arguments = parameters((), 3)
    wr = arguments["recurrent_weight"].requires_grad_()
    rates = Circuit(**arguments).steady_state(tol=TOL).rates
    (gradient,) = torch.autograd.grad(rates.sum(), wr)
    t = torch.tensor([0.0, 200.0], dtype=DOUBLE)
    for i, j in ((0, 0), (1, 2)):
        ends = []
        for step in (1e-4, -1e-4):
            moved = wr.detach().clone()
            moved[i, j] += step
            circuit = Circuit(**{**arguments, "recurrent_weight": moved})
            y, _ = simulate(circuit, t, rtol=1e-10, atol=1e-12)
            ends.append((y[-1].relu() ** 2).sum())
        difference = (ends[0] - ends[1]) / 2e-4
        assert float(gradient[i, j]) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


def test_rates_and_states_share_one_backward(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((4,), 3)
    drive = arguments["input_drive"].requires_grad_()
    state = Circuit(**arguments).steady_state(tol=TOL)
    total = torch.autograd.grad(
        (state.rates + 2 * state.y - state.a).sum(), drive, retain_graph=True
    )[0]
    parts = [
        torch.autograd.grad(part.sum(), drive, retain_graph=True)[0]
        for part in (state.rates, 2 * state.y, -state.a)
    ]
    torch.testing.assert_close(total, sum(parts))


def test_diagnostics_have_no_gradient(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((4,), 3)
    arguments["input_drive"].requires_grad_()
    state = Circuit(**arguments).steady_state()
    assert state.y.requires_grad
    assert state.rates.requires_grad
    assert not state.residual.requires_grad


def test_time_constants_have_no_gradient(parameters: Callable[..., dict[str, Any]]) -> None:
    tau = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    arguments = parameters((4,), 3)
    arguments["input_drive"].requires_grad_()
    state = Circuit(**arguments, tau_y=tau).steady_state()
    assert torch.autograd.grad(state.y.sum(), tau, allow_unused=True)[0] is None


def test_single_precision_is_close_to_double(parameters: Callable[..., dict[str, Any]]) -> None:
    grads = []
    for dtype in (torch.float32, torch.float64):
        arguments = parameters((50,), 5, dtype=dtype)
        wr = arguments["recurrent_weight"].requires_grad_()
        rates = Circuit(**arguments).steady_state().rates
        grads.append(torch.autograd.grad(rates.mean(), wr)[0].double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["warn", "ignore"])
@pytest.mark.filterwarnings("ignore::deq_organics.SteadyStateWarning")
def test_a_failed_circuit_has_zero_gradient_and_spoils_no_other(on_failure: str) -> None:
    w = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
    wr = -torch.ones(1, 1, dtype=DOUBLE)
    drive = torch.tensor([[0.1], [1.0], [0.2]], dtype=DOUBLE, requires_grad=True)
    state = Circuit(drive, 0.5, wr, w).steady_state(tol=TOL, on_failure=on_failure)
    assert state.converged.tolist() == [True, False, True]
    found = torch.autograd.grad(state.y.nansum() + state.a.nansum(), (drive, w))
    good = drive.detach()[[0, 2]].requires_grad_()
    alone = Circuit(good, 0.5, wr, w).steady_state(tol=TOL)
    expected = torch.autograd.grad(alone.y.sum() + alone.a.sum(), (good, w))
    assert found[0][1] == 0
    torch.testing.assert_close(found[0][[0, 2]], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.slow
def test_a_failed_circuit_has_zero_tangent() -> None:
    """Two copies of the counterexample side by side, and a circuit that settles."""
    eye = torch.eye(2, dtype=DOUBLE)
    with forward_ad.dual_level():
        primal = torch.tensor([[1.0, 1.0], [0.1, 0.1]], dtype=DOUBLE)
        drive = forward_ad.make_dual(primal, torch.ones(2, 2, dtype=DOUBLE))
        state = Circuit(drive, 0.5, -eye, eye).steady_state(on_failure="ignore")
        tangent = forward_ad.unpack_dual(state.y).tangent
    assert state.converged.tolist() == [False, True]
    assert (tangent[0] == 0).all()
    assert (tangent[1] != 0).all()


class TestAdjointThatCannotBeSolved:
    @pytest.fixture(autouse=True)
    def _broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def iteratively(
            problem: Problem, y: Tensor, a: Tensor, g: Tensor, tol: float, precondition: object
        ) -> tuple[Tensor, Tensor]:
            value = exact(problem, y, a, g)
            value[1:] = torch.nan
            return value, by_torch.adjoint_residual(problem, y, a, value, g)  # type: ignore[attr-defined]

        def densely(problem: Problem, y: Tensor, a: Tensor, g: Tensor) -> Tensor:
            return torch.full_like(g, torch.nan)

        exact = by_torch.solve_adjoint_dense  # type: ignore[attr-defined]
        monkeypatch.setattr(by_torch, "solve_adjoint_dense", densely)
        monkeypatch.setattr(by_torch, "solve_adjoint_iteratively", iteratively)

    def test_warning(self, parameters: Callable[..., dict[str, Any]]) -> None:
        arguments = parameters((3,), 2)
        drive = arguments["input_drive"].requires_grad_()
        state = Circuit(**arguments).steady_state()
        with pytest.warns(AdjointWarning, match="2 of 3 circuits"):
            state.y.sum().backward()
        assert (drive.grad[1:] == 0).all()
        assert (drive.grad[0] != 0).any()

    def test_error(self, parameters: Callable[..., dict[str, Any]]) -> None:
        arguments = parameters((3,), 2)
        arguments["input_drive"].requires_grad_()
        state = Circuit(**arguments).steady_state(on_failure="error")
        with pytest.raises(SteadyStateError, match=r"adjoint equation of 2 of 3 circuits"):
            state.y.sum().backward()


def test_the_dense_adjoint_takes_over(
    parameters: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the iteration stalls the result is still exact."""

    def stalled(
        problem: Problem, y: Tensor, a: Tensor, g: Tensor, tol: float, precondition: object
    ) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(g), torch.ones_like(g[:, 0])

    grads = []
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(by_torch, "solve_adjoint_iteratively", stalled)
        arguments = parameters((5,), 3, recurrence="per-circuit")
        wr = arguments["recurrent_weight"].requires_grad_()
        Circuit(**arguments).steady_state(tol=TOL).rates.sum().backward()
        grads.append(wr.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-11)


def test_near_a_fold_the_gradient_is_right_or_refused() -> None:
    """wr > 1: shortly before two of three fixed points merge the Jacobian is nearly singular."""
    wr, w, c = 2.0, 1.0, 0.02
    # Exact count: (sqrt(w) d / (wr-1))^(2/3) + (sqrt(c) wr / (wr-1))^(2/3) = 1 at the fold.
    fold = (1 - (c**0.5 * wr) ** (2 / 3)) ** 1.5
    one = torch.ones(1, 1, dtype=DOUBLE)

    def solve(d: Tensor) -> tuple[Tensor, SteadyState]:
        drive = torch.tensor([[d]], dtype=DOUBLE, requires_grad=True)
        state = Circuit(drive, c, wr * one, w * one).steady_state(tol=1e-14, on_failure="error")
        return drive, state

    for distance in (1e-2, 1e-4, 1e-6):
        drive, state = solve(fold - distance)
        (found,) = torch.autograd.grad(state.y.sum(), drive)
        jacobian = Circuit(drive.detach(), c, wr * one, w * one).jacobian(
            state.y.detach(), state.a.detach()
        )
        exact = torch.linalg.solve(jacobian, -torch.tensor([[[1.0], [0.0]]], dtype=DOUBLE))
        torch.testing.assert_close(found, exact[:, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("recurrence", ["identity", "shared", "per-circuit"])
def test_memory_does_not_depend_on_the_iterations(
    parameters: Callable[..., dict[str, Any]], recurrence: str
) -> None:
    def saved_bytes(tol: float, max_iter: int) -> tuple[int, int]:
        sizes, iterations = [], []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        arguments = parameters((16,), 5, recurrence=recurrence)
        for name in LEAVES:
            if arguments[name] is not None:
                arguments[name].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            state = Circuit(**arguments).steady_state(tol=tol, max_iter=max_iter)
        iterations.append(int(state.iterations.sum()))
        return sum(sizes), iterations[0]

    loose, few = saved_bytes(1e-1, 10)
    tight, many = saved_bytes(1e-13, 200)
    assert loose == tight > 0
    assert recurrence == "identity" or many > 2 * few


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("as_matrix", [False, True])
def test_small_inhibitory_rates(dtype: torch.dtype, rectified: bool, as_matrix: bool) -> None:
    """y = z / sqrt(c + z^2), whose derivative is c / (c + z^2)^1.5, in both modes."""
    one = torch.ones(1, 1, dtype=dtype)
    for z in (1e-3, 1e-5, 1e-8, 1e-12):
        drive = torch.tensor([z], dtype=dtype, requires_grad=True)

        def settled(d: Tensor, z: float = z) -> Tensor:
            wr = one if as_matrix else None
            return Circuit(d, z * z, wr, one, rectified=rectified).steady_state().y

        expected = z * z / (2 * z * z) ** 1.5
        (gradient,) = torch.autograd.grad(settled(drive).sum(), drive)
        (tangent,) = torch.func.jvp(settled, (drive.detach(),), (torch.ones_like(drive),))[1]
        assert float(gradient) == pytest.approx(expected, rel=1e-5)
        assert float(tangent) == pytest.approx(expected, rel=1e-5)
