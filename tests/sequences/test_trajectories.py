"""Stability of the steps along a trajectory, its cause where it fails, and boundedness."""

from typing import Any

import pytest
import torch

from deq_organics import Circuit, check_stability
from recurrent import ORGaNICsCell, State, check_trajectory
from recurrent.dynamics import steps
from recurrent.stability import step_jacobian

pytestmark = pytest.mark.usefixtures("double")

OPTIONS = [{}, {"rectified": False}, {"rectifier": "after_weights"}, {"input_gain": "fixed"}]

FREE: dict[str, Any] = {"recurrence": "unconstrained", "input_gain": "fixed", "rectified": False}


def settled(largest_step: float, drive: float) -> tuple[ORGaNICsCell, torch.Tensor, State]:
    """A circuit with ``Wr = I`` and fixed gains at its (always stable) fixed point."""
    cell = ORGaNICsCell(
        1,
        4,
        recurrence="identity",
        input_gain="fixed",
        learn_time_constants=False,
        max_step_y=largest_step,
        max_step_a=largest_step,
    )
    with torch.no_grad():
        cell.input_weight.fill_(drive)
    b = torch.ones(4)
    circuit = Circuit(drive * b, 1.0, None, cell.normalization_weight.detach(), rectified=True)
    y, a = circuit.closed_form()
    assert check_stability(circuit).stable
    return cell, torch.ones(5, 1), State(y, a, b, b)


@pytest.mark.parametrize("options", OPTIONS)
def test_jacobian_of_the_step_is_its_derivative(options: dict[str, Any]) -> None:
    cell = ORGaNICsCell(2, 3, max_step_y=0.5, max_step_a=0.5, max_step_b=0.5, **options)
    x, state = torch.rand(4, 2), State(*torch.rand(4, 4, 3))
    moving = 2 if cell.input_gain == "fixed" else 4
    jacobian, continuous = step_jacobian(cell.model, cell.parameters_of_step(), x, state)
    assert jacobian.shape == (4, 3 * moving, 3 * moving)
    identity = torch.eye(3 * moving)
    torch.testing.assert_close(jacobian - identity, continuous)
    direction = torch.randn(4, 3 * moving)
    width = 1e-6
    parts = direction.chunk(moving, -1)
    ahead, behind = (cell(x, shifted(state, parts, sign * width)) for sign in (1, -1))
    difference = [(u - v) / (2 * width) for u, v in zip(ahead, behind, strict=True)][:moving]
    expected = torch.cat(difference, -1)
    torch.testing.assert_close(
        (jacobian @ direction.unsqueeze(-1)).squeeze(-1), expected, rtol=1e-7, atol=1e-8
    )


def shifted(state: State, parts: tuple[torch.Tensor, ...], width: float) -> State:
    moved = (s + width * p for s, p in zip(state, parts, strict=False))
    return State(*moved, *state[len(parts) :])


@pytest.mark.parametrize("rectified", [True, False])
def test_jacobian_is_that_of_the_circuit(rectified: bool) -> None:
    cell = ORGaNICsCell(2, 3, input_gain="fixed", rectified=rectified)
    x, state = torch.rand(4, 2), State(*torch.rand(4, 4, 3))
    parameters = cell.parameters_of_step()
    step_y, step_a, *_ = steps(parameters)
    circuit = Circuit(
        torch.zeros(4, 3),
        1.0,
        cell.recurrent_weight,
        cell.normalization_weight,
        1 / step_y,
        1 / step_a,
        rectified=rectified,
    )
    _, continuous = step_jacobian(cell.model, parameters, x, state)
    torch.testing.assert_close(continuous, circuit.jacobian(state.y, state.a))


def test_the_recipes_cell_is_stable_and_bounded() -> None:
    cell, x = ORGaNICsCell(1, 8), torch.rand(200, 3, 1)
    report = check_trajectory(cell, x, cell.draw_state(3), every=50)
    assert report.checked.tolist() == [0, 50, 100, 150]
    assert report.spectral_radius.shape == (4, 3)
    assert report.stable.all()
    assert report.bounded.all()
    assert (report.largest_step > 1).all()
    assert "12 steps: 12 stable" in str(report)


def test_eulers_step_is_named_where_the_circuit_is_stable() -> None:
    cell, x, state = settled(largest_step=1.0, drive=30.0)
    report = check_trajectory(cell, x, state, limit=1e6)
    assert report.step_too_large[0]
    assert report.rightmost[0] < 0
    assert report.spectral_radius[0] > 1
    assert "Euler's step size is the cause" in str(report)
    factor = report.largest_step[0].item()
    assert 0 < factor < 1
    for scale, stable in ((0.99, True), (1.01, False)):
        smaller, *_ = settled(largest_step=factor * scale, drive=30.0)
        smaller.load_state_dict({**smaller.state_dict(), **weights_of(cell)})
        assert bool(check_trajectory(smaller, x, state).stable[0]) is stable


def weights_of(cell: ORGaNICsCell) -> dict[str, torch.Tensor]:
    return {name: value for name, value in cell.state_dict().items() if "step" not in name}


def test_an_unstable_circuit_is_not_blamed_on_the_step() -> None:
    cell = ORGaNICsCell(1, 2, **FREE)
    with torch.no_grad():
        cell.recurrent_weight.copy_(5 * torch.eye(2))
    state = State(torch.zeros(2), torch.full((2,), 1e-4), torch.ones(2), torch.ones(2))
    report = check_trajectory(cell, torch.rand(3, 1), state)
    assert not report.stable[0]
    assert not report.step_too_large[0]
    assert report.largest_step[0].isnan()
    assert "the continuous circuit itself is unstable" in str(report)


def test_divergence_is_reported_and_costs_no_error() -> None:
    cell = ORGaNICsCell(1, 2, max_step_y=1.0, max_step_a=1.0, **FREE)
    with torch.no_grad():
        cell.recurrent_weight.mul_(50.0)
    state = State(*torch.full((4, 2), 30.0))
    report = check_trajectory(cell, torch.rand(60, 1), state)
    assert not report.bounded
    assert report.spectral_radius[-1].isnan()
    assert not report.stable[-1]
    assert "the state is not finite" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("rectified", [True, False])
def test_cells_of_the_recipe_stay_bounded(rectified: bool) -> None:
    cell = ORGaNICsCell(2, 16, rectified=rectified, recurrence="unconstrained")
    with torch.no_grad():
        state = cell.draw_state(32)
        for _ in range(2000):
            state = cell(torch.rand(32, 2), state)
    assert all(part.abs().max() < 5 for part in state)
