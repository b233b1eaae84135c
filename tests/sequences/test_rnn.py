"""The manners of torch.nn.RNN."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from recurrent import ORGaNICsCell, ORGaNICsRNN, State, check_trajectory

BACKENDS = ["reference", "fused"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", [1, 3])
def test_shapes_are_those_of_torch(backend: str, layers: int) -> None:
    ours, theirs = ORGaNICsRNN(3, 5, layers, backend=backend), nn.RNN(3, 5, layers)
    for x in (torch.rand(7, 2, 3), torch.rand(7, 3)):
        output, state = ours(x)
        expected, hidden = theirs(x)
        assert output.shape == expected.shape
        assert [part.shape for part in state] == [hidden.shape] * 4
        assert isinstance(state, State)
        torch.testing.assert_close(output[-1], state.y[-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_first_and_unbatched_are_the_same_numbers(backend: str) -> None:
    first = ORGaNICsRNN(3, 5, 2, backend=backend, batch_first=True)
    second = copy.deepcopy(first)
    second.batch_first = False
    x, state = torch.rand(2, 7, 3), first.draw_state(2)
    output, last = first(x, state)
    transposed, expected = second(x.transpose(0, 1), state)
    torch.testing.assert_close(output, transposed.transpose(0, 1))
    one, alone = second(x[1], State(*(part[:, 1] for part in state)))
    torch.testing.assert_close(one, output[1])
    for left, middle, right in zip(last, expected, alone, strict=True):
        torch.testing.assert_close(left, middle)
        torch.testing.assert_close(left[:, 1], right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_in_two_pieces_is_the_sequence(backend: str) -> None:
    rnn, x = ORGaNICsRNN(3, 5, 2, backend=backend), torch.rand(9, 2, 3)
    whole, last = rnn(x)
    head, state = rnn(x[:4])
    tail, final = rnn(x[4:], state)
    torch.testing.assert_close(torch.cat([head, tail]), whole)
    for left, right in zip(final, last, strict=True):
        torch.testing.assert_close(left, right)


def test_one_layer_is_the_cell_in_a_loop() -> None:
    rnn, x = ORGaNICsRNN(3, 5), torch.rand(6, 2, 3)
    cell: Any = rnn.cells[0]
    state = cell.rest_state(2)
    for row, output in zip(x, rnn(x)[0], strict=True):
        state = cell(row, state)
        torch.testing.assert_close(output, state.y)


def test_rates_are_read_out_and_passed_on() -> None:
    rnn, x = ORGaNICsRNN(3, 5, 2, readout="rates"), torch.rand(6, 2, 3)
    output, state = rnn(x)
    torch.testing.assert_close(output[-1], state.y[-1].relu().square())
    single = ORGaNICsRNN(3, 5, readout="rates")
    single.cells[0] = rnn.cells[0]
    inner, _ = single(x)
    single.input_size, single.cells[0] = 5, rnn.cells[1]
    torch.testing.assert_close(single(inner)[0], output)


def test_nothing_is_kept_in_the_module() -> None:
    rnn, x = ORGaNICsRNN(3, 5), torch.rand(6, 2, 3)
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    first, second = rnn(x)[0], rnn(x)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for name, value in rnn.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_state_dict_device_and_dtype() -> None:
    rnn = ORGaNICsRNN(3, 5, 2, dtype=torch.float64)
    other = ORGaNICsRNN(3, 5, 2).double()
    other.load_state_dict(rnn.state_dict())
    x = torch.rand(6, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(rnn(x)[0], other(x)[0])
    assert rnn(x)[0].dtype == torch.float64
    assert ORGaNICsRNN(3, 5, device="meta").cells[0].input_weight.is_meta


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_lowers_a_loss_without_clipping(backend: str) -> None:
    rnn = ORGaNICsRNN(1, 8, backend=backend, max_step_y=0.2, max_step_a=0.1)
    readout = nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=1e-2)
    x = torch.rand(20, 32, 1)
    target = x.mean(0)
    losses = []
    for _ in range(60):
        loss = (readout(rnn(x)[0][-1]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_autocast_computes_in_the_parameters_precision() -> None:
    rnn, x = ORGaNICsRNN(3, 5), torch.rand(6, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = rnn(x)
    torch.testing.assert_close(output, rnn(x)[0])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "input_gain": "fixed"}])
def test_empty_batch(backend: str, options: dict[str, Any]) -> None:
    rnn = ORGaNICsRNN(3, 5, backend=backend, **options)
    x = torch.rand(2, 0, 3, requires_grad=True)
    output, state = rnn(x, rnn.draw_state(0))
    assert output.shape == (2, 0, 5)
    assert {part.shape for part in state} == {(rnn.num_layers, 0, 5)}
    output.sum().backward()
    assert x.grad.shape == x.shape
    for parameter in rnn.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_trajectories_of_an_empty_batch() -> None:
    cell = ORGaNICsCell(3, 5)
    report = check_trajectory(cell, torch.rand(6, 0, 3), every=2)
    assert report.spectral_radius.shape == report.stable.shape == (3, 0)
    assert report.bounded.shape == report.largest_magnitude.b.shape == (0,)
    assert "0 steps: 0 stable" in str(report)
    assert {part.shape for part in cell(torch.rand(0, 3))} == {(0, 5)}


def test_repr_names_what_is_not_default() -> None:
    rnn = ORGaNICsRNN(3, 5, 2, batch_first=True, backend="reference")
    assert "3, 5, num_layers=2, batch_first=True, backend='reference'" in repr(rnn)
    assert isinstance(rnn.cells[1], ORGaNICsCell)
    rnn.reset_parameters()


@pytest.mark.slow
def test_inference_mode(backend: str) -> None:
    rnn, x = ORGaNICsRNN(3, 5, 2, backend=backend), torch.rand(2, 3, 3)
    expected, _ = rnn(x)
    with torch.inference_mode():
        output, state = rnn(x)
        again, _ = rnn(x, state)
    torch.testing.assert_close(output, expected.detach())
    assert again.is_inference()
