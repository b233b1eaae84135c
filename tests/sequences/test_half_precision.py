"""Modules in half precision step a float32 state: no increment of a step is lost."""

import copy
from typing import Any, TypeVar

import pytest
import torch
from _kernels import DEVICE
from torch import Tensor, nn

from recurrent import ORGaNICsCell, ORGaNICsRNN, State, check_trajectory

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
HALVES = [torch.bfloat16, torch.float16]
# Half a unit in the last place, as a part of the value.
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"recurrence": "spectral", "rectified": False},
    {"recurrence": "identity", "input_gain": "fixed"},
    {"num_layers": 2, "readout": "rates"},
    {"recurrence": "bounded"},
    {"learn_time_constants": False, "rectifier": "after_weights", "batch_first": True},
]

Module = TypeVar("Module", bound=nn.Module)


def error(got: Tensor, expected: Tensor) -> float:
    return float(((got.double() - expected).norm() / expected.norm()).detach())


def in_double(rnn: Module) -> Module:
    """The module with the same weights, exactly."""
    return copy.deepcopy(rnn).double()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_a_thousand_steps(dtype: torch.dtype) -> None:
    rnn, x = ORGaNICsRNN(3, 32, dtype=dtype), torch.rand(1000, 4, 3).to(dtype)
    output, last = rnn(x)
    expected, last_expected = in_double(rnn)(x.double())
    assert output.dtype == dtype
    assert error(output, expected) <= ROUNDING[dtype]
    for got, exact in zip(last, last_expected, strict=True):
        assert got.dtype == torch.float32
        assert error(got, exact) <= 1e-5
    # What torch's own recurrent modules reach, whose increments are not small.
    lstm = nn.LSTM(3, 32, dtype=dtype)
    _, (_, cell) = lstm(x)
    _, (_, cell_expected) = in_double(lstm)(x.double())
    assert error(last.a, last_expected.a) < error(cell, cell_expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_the_cell_in_a_loop(dtype: torch.dtype) -> None:
    cell, x = ORGaNICsCell(3, 16, dtype=dtype), torch.rand(300, 2, 3).to(dtype)
    twin, state, exact = in_double(cell), None, None
    with torch.no_grad():
        for row in x:
            state, exact = cell(row, state), twin(row.double(), exact)
    for got, expected in zip(state, exact, strict=True):
        assert got.dtype == torch.float32
        assert error(got, expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", OPTIONS)
def test_results_and_gradients(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    steps = 2 if backend == "cuda" else 30
    fast: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
    rnn = ORGaNICsRNN(3, 6, backend=backend, dtype=dtype, **fast, **options).to(DEVICE)
    x = torch.rand(steps, steps, 3, device=DEVICE).to(dtype).requires_grad_()
    state = rnn.draw_state(steps)
    state = State(*(part.to(dtype).requires_grad_() for part in state))
    twin = in_double(rnn)
    twin.backend = "reference"
    results = []
    # Fixed output gradients: those of rounded outputs would differ by their rounding.
    weights = None
    for module in (rnn, twin):
        cell: Any = module.cells[0]
        like = cell.input_weight
        output, last = module(x.to(like.dtype), State(*(part.to(like.dtype) for part in state)))
        if weights is None:
            weights = [torch.rand_like(part, dtype=torch.float64) for part in (output, *last)]
        pairs = zip((output, *last), weights, strict=True)
        loss = sum((part.double() * weight).sum() for part, weight in pairs)
        found = torch.autograd.grad(loss, [x, *state, *module.parameters()], materialize_grads=True)
        results.append((output, *last, *found))
    assert results[0][0].dtype == dtype
    for got, expected in zip(*results, strict=True):
        if expected.norm() > 0:
            assert error(got, expected.double()) <= 4 * ROUNDING[dtype]
        else:
            assert got.norm() == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_a_sequence_in_pieces_is_the_sequence(dtype: torch.dtype) -> None:
    rnn, x = ORGaNICsRNN(3, 8, 2, dtype=dtype), torch.rand(60, 2, 3).to(dtype)
    whole, last = rnn(x)
    state, pieces = None, []
    for piece in x.split(1):
        output, state = rnn(piece, state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces), whole)
    for got, expected in zip(state, last, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_an_orthogonal_start_is_within_its_bound(dtype: torch.dtype) -> None:
    """Rounding of its entries takes it above 1, by more than what is forgiven in float32."""
    for seed in range(20):
        torch.manual_seed(seed)
        cell = ORGaNICsCell(3, 4 + 3 * seed, recurrence="spectral", dtype=dtype)
        bounded = cell.parameters_of_step().recurrent_weight
        assert torch.linalg.matrix_norm(bounded, 2) <= 1 + 1e-6
    with pytest.raises(
        ValueError, match=r"recurrent_weight: got a largest singular value of 1\.[01]"
    ):
        cell.recurrent_weight = 1.1 * torch.eye(cell.hidden_size, dtype=dtype)


def test_states_of_both_types_are_taken_and_others_refused() -> None:
    rnn, x = ORGaNICsRNN(3, 4, dtype=torch.bfloat16), torch.rand(5, 2, 3).bfloat16()
    state = rnn.draw_state(2)
    assert {part.dtype for part in (*state, *rnn.rest_state(2))} == {torch.float32}
    rnn(x, state._replace(a=state.a.bfloat16()))
    with pytest.raises(
        ValueError, match=r"state\.a: got torch\.float64 .* expected torch\.float32"
    ):
        rnn(x, state._replace(a=state.a.double()))
    single = ORGaNICsRNN(3, 4)
    with pytest.raises(ValueError, match=r"state\.a: got torch\.bfloat16"):
        single(x.float(), state._replace(a=state.a.bfloat16()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    rnn = ORGaNICsRNN(3, 5, backend=backend, dtype=dtype, device=DEVICE)
    x, state = torch.rand(4, 2, 3, device=DEVICE).to(dtype), rnn.draw_state(2)
    names = [name for name, _ in rnn.named_parameters()]
    results = []
    for enabled in (True, False):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=enabled):
            output, last = rnn(x, state)
            found = torch.autograd.grad(output.float().sum(), list(rnn.parameters()))
        results.append({"output": output, **last._asdict(), **dict(zip(names, found, strict=True))})
    got, expected = results
    for name, value in got.items():
        assert value.dtype == expected[name].dtype
        if backend != "reference" or name in ("output", *State._fields):
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_autocast_takes_inputs_and_states_of_its_own_type() -> None:
    rnn, x = ORGaNICsRNN(3, 5), torch.rand(6, 2, 3).bfloat16()
    state = State(*(part.bfloat16() for part in rnn.draw_state(2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, last = rnn(x, state)
    expected, _ = rnn(x.float(), State(*(part.float() for part in state)))
    assert last.y.dtype == torch.float32
    torch.testing.assert_close(output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_training_and_trajectories(dtype: torch.dtype) -> None:
    rnn = ORGaNICsRNN(1, 8, dtype=dtype, recurrence="spectral", max_step_y=0.2, max_step_a=0.1)
    x = torch.rand(20, 16, 1).to(dtype)
    optimizer, losses = torch.optim.SGD(rnn.parameters(), lr=0.3), []
    for _ in range(10):
        loss = (rnn(x)[1].y - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    cell: Any = rnn.cells[0]
    assert check_trajectory(cell, x, cell.rest_state(16)).bounded.all()
