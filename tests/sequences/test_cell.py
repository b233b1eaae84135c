"""One step is the circuit's vector field times dt/tau, and starts by the paper's recipe."""

from typing import Any

import pytest
import torch

from deq_organics import Circuit
from recurrent import ORGaNICsCell, State

pytestmark = pytest.mark.usefixtures("double")

OPTIONS = [
    {},
    {"rectified": False},
    {"recurrence": "identity"},
    {"recurrence": "unconstrained"},
    {"recurrence": "spectral", "semisaturation": 0.7},
    {"learn_time_constants": False},
    {"input_gain": "fixed"},
    {"input_gain": "fixed", "rectified": False},
]


def random_state(*shape: int) -> State:
    return State(*torch.randn(4, *shape))


@pytest.mark.parametrize("options", OPTIONS)
def test_step_is_the_circuits_field_times_dt_over_tau(options: dict[str, Any]) -> None:
    cell = ORGaNICsCell(3, 7, max_step_y=0.5, max_step_a=0.3, max_step_b=0.9, **options)
    x, state = torch.randn(50, 3), random_state(50, 7)
    new = cell(x, state)
    z = x @ cell.input_weight.T
    if cell.model.rectified:
        z = z.relu()
    circuit = Circuit(
        state.b * z,
        (state.b0 * cell.semisaturation).square() + 1e-300,
        cell.recurrent_weight,
        cell.normalization_weight,
        1.0 / cell.step_y,
        1.0 / cell.step_a,
        rectified=cell.model.rectified,
    )
    flow_y, flow_a = circuit.vector_field(state.y, state.a)
    torch.testing.assert_close(new.y, state.y + flow_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new.a, state.a + flow_a, rtol=1e-12, atol=1e-12)
    for name, prefix in (("b", ""), ("b0", "baseline_")):
        old, got = getattr(state, name), getattr(new, name)
        if cell.input_gain == "fixed":
            torch.testing.assert_close(got, old, rtol=0, atol=0)
            continue
        weights = [getattr(cell, f"{prefix}gain_weight_{part}") for part in "xya"]
        target = sum(v @ w.T for v, w in zip((x, state.y, state.a), weights, strict=True))
        step = getattr(cell, f"step_{name}")
        expected = old + step * (1 / (1 + torch.exp(-target)) - old)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_published_rectifier_acts_after_the_weights() -> None:
    cell = ORGaNICsCell(2, 5, rectifier="after_weights")
    x, state = torch.rand(4, 2), random_state(4, 5)
    gain = 1 - state.a.relu().sqrt()
    field = state.b * (x @ cell.input_weight.T).relu() - state.y
    field = field + gain * (state.y @ cell.recurrent_weight.T).relu()
    torch.testing.assert_close(cell(x, state).y, state.y + cell.step_y * field)


def test_start_of_the_parameters() -> None:
    cell = ORGaNICsCell(3, 20, recurrence="unconstrained")
    assert torch.linalg.matrix_norm(cell.input_weight, 2).item() == pytest.approx(1.0)
    wr = cell.recurrent_weight
    torch.testing.assert_close(wr @ wr.T, torch.eye(20))
    w = cell.normalization_weight
    assert 0 < w.min() < w.max() < 1
    for name, largest in (("y", 0.02), ("a", 0.005), ("b", 0.1), ("b0", 0.1)):
        step = getattr(cell, f"step_{name}")
        assert 0 < step.min() < step.max() < largest


def test_fixed_time_constants_are_buffers_at_sigmoid_of_one() -> None:
    cell = ORGaNICsCell(3, 4, learn_time_constants=False)
    assert "step_y" in dict(cell.named_buffers())
    torch.testing.assert_close(cell.step_a, 0.005 * torch.ones(4).sigmoid())


def test_gradient_of_the_normalization_weights_is_alive_everywhere() -> None:
    cell = ORGaNICsCell(3, 6)
    cell.normalization_weight.sum().backward()
    assert (cell.parametrizations.normalization_weight.original.grad.abs() > 1e-3).all()


def test_rest_state_is_at_rest_without_input() -> None:
    cell = ORGaNICsCell(3, 6, input_gain="fixed", semisaturation=0.8)
    rest = cell.rest_state()
    for before, after in zip(rest, cell(torch.zeros(3)), strict=True):
        torch.testing.assert_close(after, before)


def test_drawn_state_follows_the_recipe_and_the_generator() -> None:
    cell = ORGaNICsCell(3, 50)
    first, second = (
        cell.draw_state(4, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for left, right in zip(first, second, strict=True):
        assert left.shape == (4, 50)
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    torch.testing.assert_close(first.y.norm(dim=-1), torch.ones(4))
    assert (first.b0 == 1).all()
    assert first.a.min() >= 0
    assert first.a.max() <= 1


def test_spectral_recurrence_keeps_its_bound_under_training() -> None:
    cell = ORGaNICsCell(1, 6, recurrence="spectral")
    with torch.no_grad():
        cell.parametrizations.recurrent_weight.original.mul_(3.0)
    assert torch.linalg.matrix_norm(cell.recurrent_weight, 2).item() == pytest.approx(1.0)


def test_unbatched_cell_and_repr() -> None:
    cell = ORGaNICsCell(2, 3, recurrence="identity", input_gain="fixed")
    assert cell(torch.rand(2)).y.shape == (3,)
    assert cell.recurrent_weight is None
    assert "recurrence='identity'" in repr(cell)
