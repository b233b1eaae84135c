"""Where a circuit settles from a start: by its own dynamics, and what is said when it does not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, POOL, random_parameters, vector
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import jacrev, vmap

from deq_organics import Circuit, Reached, Status, check_stability, fixed_points_2d
from deq_organics.problem import Problem
from deq_organics.steady_state.methods import auto
from deq_organics.steady_state.methods.relaxation.rosenbrock import take_step, tolerances

ONE = torch.ones(1, 1, dtype=DOUBLE)
# Settles from rest at y = 0.9151, and has another stable fixed point at y = -0.8626.
BISTABLE: dict[str, Any] = {
    "input_drive": vector(0.1),
    "inhibitory_drive": 0.05,
    "recurrent_weight": 2 * ONE,
}


def bistable(**options: Any) -> Circuit:
    return Circuit(**BISTABLE, normalization_weight=ONE, **options)


def trajectory(
    circuit: Circuit, y: Tensor, a: Tensor, duration: float, method: str = "LSODA"
) -> Any:
    """One circuit's trajectory by scipy, at the end of ``duration``."""
    n = circuit.n
    d, c = circuit.input_drive.numpy(), circuit.inhibitory_drive.numpy()
    wr, w = circuit.recurrent_weight.numpy(), circuit.normalization_weight.numpy()
    tau_y, tau_a = circuit.tau_y.numpy(), circuit.tau_a.numpy()

    def field(_: float, x: np.ndarray) -> list[float]:
        y, a = x[:n], x[n:]
        root = a.clip(0) ** 0.5
        return [*((d - y + (1 - root) * (wr @ y)) / tau_y), *((c - a + w @ (y * y * a)) / tau_a)]

    start = torch.cat([y, a]).numpy()
    return solve_ivp(field, (0, duration), start, method, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_each_start_leads_to_its_own_fixed_point() -> None:
    circuit = bistable()
    y = torch.linspace(-2, 2, 9, dtype=DOUBLE).unsqueeze(-1)
    a = torch.linspace(0.2, 0.4, 9, dtype=DOUBLE).unsqueeze(-1)
    state = circuit.steady_state(start=(y, a), tol=1e-10)
    assert state.converged.all()
    assert (state.reached == Reached.YES).all()
    expected = torch.tensor(
        [trajectory(circuit, *start, 300.0).y[0, -1] for start in zip(y, a, strict=True)]
    )
    torch.testing.assert_close(state.y.squeeze(-1), expected, rtol=1e-6, atol=1e-6)
    points = fixed_points_2d(circuit)
    assert {round(float(v), 4) for v in state.y} == {
        round(float(v), 4) for v in points.y[points.stable]
    }


@pytest.mark.slow
def test_rest_is_where_the_circuit_stays_without_input() -> None:
    silent = Circuit(torch.zeros(2, dtype=DOUBLE), 0.3, 0.5 * torch.eye(2).double(), POOL)
    assert all((part == 0).all() for part in silent.vector_field(vector(0, 0), vector(0.3, 0.3)))
    circuit = bistable()
    named = circuit.steady_state(start="rest")
    given = circuit.steady_state(start=(vector(0.0), vector(0.05)))
    assert torch.equal(named.y, given.y)
    assert float(named.y) == pytest.approx(0.9151, abs=1e-4)


@pytest.mark.slow
def test_the_default_says_when_the_state_is_not_reached_from_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dynamics of these circuits diverge from rest; each has a stable fixed point too.

    Newton's method finds it from where the fast iteration ended, before the dynamics are followed;
    here the dynamics are followed first.
    """
    parameters = random_parameters(
        (100,), 2, recurrence="per-circuit", shared=False, seed=0, singular_value=4.0
    )
    rows = [5, 18, 20, 42, 45, 58, 60, 69]
    tensors = {name: parameters.pop(name)[rows] for name in list(parameters)[:4]}
    circuit = Circuit(**tensors, **parameters, tau_a=8.0)

    def only_along_the_dynamics(problem: Problem, first: Any, tol: float) -> Any:
        auto._follow_from_rest(problem, first, torch.arange(len(rows)), tol)
        return first

    monkeypatch.setattr(auto, "solve_normalized", lambda part, *_: auto.solve_closed_form(part))
    monkeypatch.setattr(auto, "_STAGES", (auto.MAX_STEPS,))  # type: ignore[attr-defined]
    monkeypatch.setattr(auto, "_rescue", only_along_the_dynamics)
    state = circuit.steady_state(tol=1e-9, on_failure="ignore")
    elsewhere = state.converged.nonzero().squeeze(-1)
    assert elsewhere.numel() > 0
    assert (state.reached[elsewhere] == Reached.NO).all()
    assert check_stability(circuit, state).stable[elsewhere].all()
    text = f"{elsewhere.numel()} of these: stable, but the dynamics from rest end elsewhere"
    assert text in str(state)
    from_rest = circuit.steady_state(start="rest", tol=1e-9, on_failure="ignore")
    assert (from_rest.status[elsewhere] == Status.DIVERGED).all()


@pytest.mark.slow
def test_a_start_has_the_gradient_of_the_state_it_leads_to() -> None:
    y = torch.linspace(-2, 2, 9, dtype=DOUBLE).unsqueeze(-1)
    a = torch.linspace(0.2, 0.4, 9, dtype=DOUBLE).unsqueeze(-1)

    def settled(drive: Tensor) -> Tensor:
        arguments: dict[str, Any] = {**BISTABLE, "input_drive": drive}
        circuit = Circuit(**arguments, normalization_weight=ONE)
        return circuit.steady_state(start=(y, a), tol=1e-13).y

    drive = vector(0.1)
    gradient = jacrev(settled)(drive)
    step = 1e-6
    expected = (settled(drive + step) - settled(drive - step)) / (2 * step)
    torch.testing.assert_close(gradient[..., 0], expected, rtol=1e-6, atol=1e-7)
    assert len({round(float(value), 4) for value in gradient}) == 2


@pytest.mark.slow
def test_a_start_itself_has_no_gradient_and_maps() -> None:
    circuit, a = bistable(), vector(0.3)
    y = vector([-2.0], [2.0])
    mapped = vmap(lambda start: circuit.steady_state(start=(start, a)).y)(y)
    assert torch.equal(mapped, circuit.steady_state(start=(y, a)).y)
    drive = vector(0.1).requires_grad_()
    circuit = Circuit(drive, 0.05, 2 * ONE, ONE)
    state = circuit.steady_state(start=(y.requires_grad_(), a))
    state.y.sum().backward()
    assert y.grad is None
    assert drive.grad is not None


@pytest.mark.slow
def test_a_single_circuit_takes_many_starts_and_many_circuits_one(
    parameters: Callable[..., dict[str, Any]],
) -> None:
    circuit = Circuit(**parameters((4, 1), 3))
    y, a = torch.zeros(5, 3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    state = circuit.steady_state(start=(y, a))
    assert state.y.shape == (4, 5, 3)
    assert state.status.shape == (4, 5)
    expected = circuit.steady_state(start="rest")
    torch.testing.assert_close(state.y, expected.y.expand(4, 5, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_identity_is_followed_too(
    parameters: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    circuit = Circuit(**parameters((5,), 3, recurrence="identity", dtype=dtype))
    state = circuit.steady_state(start="rest", tol=1e-6)
    expected = circuit.steady_state()
    torch.testing.assert_close(state.y, expected.y, rtol=1e-4, atol=1e-5)
    assert state.y.dtype == dtype
    assert (state.reached == Reached.YES).all()
    assert (expected.reached == Reached.NOT_EXAMINED).all()
    assert expected.time.isnan().all()


@pytest.mark.slow
def test_a_start_on_an_unstable_fixed_point_stays_there() -> None:
    """Without input a circuit with wr = 2 rests at the saddle between its two states."""
    circuit = Circuit(torch.zeros(1, dtype=DOUBLE), 0.01, 2 * ONE, ONE)
    state = circuit.steady_state(start="rest", on_failure="ignore")
    assert state.status == Status.UNSTABLE
    beside = circuit.steady_state(start=(vector(1e-12), vector(0.01)))
    assert beside.converged
    assert float(beside.y) > 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": "here"}, ValueError, "start: got 'here'"),
        ({"start": 3}, TypeError, "start: got int"),
        ({"start": (ONE[0],)}, TypeError, "start: got tuple"),
        ({"start": (ONE[0], -ONE[0])}, ValueError, r"start\[1\]: got a smallest value of -1"),
        ({"start": (ONE[0] * torch.nan, ONE[0])}, ValueError, r"start\[0\]: got 1 NaN"),
        ({"start": (ONE[0].float(), ONE[0])}, ValueError, r"start\[0\]: got torch.float32"),
        ({"start": (torch.ones(2).double(), ONE[0])}, ValueError, r"start\[0\]: got shape \(2,\)"),
        ({"start": (ONE.expand(3, 1), ONE.expand(2, 1))}, ValueError, "start: got shapes"),
        ({"start": "rest", "solver": "anderson"}, ValueError, "expected solver='auto'"),
        (
            {"start": "rest", "backend": "cuda"},
            RuntimeError,
            "not support following the dynamics",
        ),
    ],
)
def test_bad_starts(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bistable().steady_state(**options)


def test_too_few_steps_are_reported_with_the_time() -> None:
    with pytest.warns(match=r"1: the dynamics did not settle .*\(t = "):
        state = bistable().steady_state(start="rest", max_iter=5)
    assert state.status == Status.NOT_SETTLED
    assert state.iterations == 5
    assert 0 < state.time < 10


@pytest.mark.slow
def test_the_integration_is_of_fourth_order(parameters: Callable[..., dict[str, Any]]) -> None:
    circuit = Circuit(**parameters((1,), 3), tau_y=0.5, tau_a=2.0)
    problem, c = circuit.flatten(), circuit.inhibitory_drive
    alone = Circuit(
        circuit.input_drive[0], c, circuit.recurrent_weight, circuit.normalization_weight, 0.5, 2.0
    )
    exact = trajectory(alone, torch.zeros(3).double(), c, 2.0, method="DOP853").y[:, -1]
    errors = []
    for steps in (10, 20, 40):
        state = torch.cat([torch.zeros(1, 3, dtype=DOUBLE), c.expand(1, 3)], -1)
        for _ in range(steps):
            size, h = tolerances(problem, state), torch.full((1,), 2.0 / steps, dtype=DOUBLE)
            state = take_step(problem, state, problem.flow(state), size, h, 1e9).state
        errors.append(float((state - torch.from_numpy(exact)).abs().max()))
    assert errors[0] / errors[1] > 12
    assert errors[1] / errors[2] > 12
