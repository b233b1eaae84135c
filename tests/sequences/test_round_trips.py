"""Modules through state dicts, meta devices, copies and pickles: nothing is lost or taken wrong."""

import copy
import io
import itertools
import pickle
import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recurrent import ORGaNICsCell, ORGaNICsRNN, check_trajectory

X = torch.rand(5, 2, 3)
CHOICES: dict[str, list[Any]] = {
    "rectified": [True, False],
    "learn_time_constants": [True, False],
    "recurrence": ["unconstrained", "spectral", "identity", "bounded"],
    "input_gain": ["dynamic", "fixed"],
    "rectifier": ["before_weights", "after_weights"],
    "semisaturation": [1.0, 0.6],
    "dtype": [torch.float32, torch.float64, torch.bfloat16],
}
COMBINATIONS = [
    options
    for values in itertools.product(*CHOICES.values())
    if (options := dict(zip(CHOICES, values, strict=True)))["rectified"]
    or options["rectifier"] == "before_weights"
]


def assert_equal_modules(left: nn.Module, right: nn.Module) -> None:
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert value.device == b[name].device
        torch.testing.assert_close(value, b[name], rtol=0, atol=0)


def run(rnn: ORGaNICsRNN) -> Tensor:
    cell: Any = rnn.cells[0]
    output, state = rnn(X.to(cell.input_weight.dtype))
    return torch.cat([output.flatten(), *(part.flatten() for part in state)]).detach()


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_combinations_through_meta_state_dict_and_copies(layers: int) -> None:
    for seed, options in enumerate(random.Random(layers).sample(COMBINATIONS, 12)):
        torch.manual_seed(seed)
        rnn = ORGaNICsRNN(3, 4, layers, **options)
        empty = ORGaNICsRNN(3, 4, layers, device="meta", **options).to_empty(device="cpu")
        for tensor in itertools.chain(empty.parameters(), empty.buffers()):
            tensor.data.fill_(torch.nan)
        torch.manual_seed(seed)
        empty.reset_parameters()
        assert_equal_modules(empty, rnn)
        other = ORGaNICsRNN(3, 4, layers, **options)
        other.load_state_dict(rnn.state_dict())
        assert_equal_modules(other, rnn)
        for twin in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            assert_equal_modules(twin, rnn)
            torch.testing.assert_close(run(twin), run(rnn), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"recurrence": "spectral", "learn_time_constants": False}])
@pytest.mark.parametrize("kind", [ORGaNICsCell, ORGaNICsRNN])
def test_meta_by_each_of_torchs_ways(kind: type[Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected = kind(3, 5, **options)
    with torch.device("meta"):
        context = kind(3, 5, **options)
        explicit = kind(3, 5, device="cpu", **options)
    assert all(tensor.is_meta for tensor in (*context.parameters(), *context.buffers()))
    assert not any(tensor.is_meta for tensor in (*explicit.parameters(), *explicit.buffers()))
    skipped = nn.utils.skip_init(kind, 3, 5, **options)
    for module in (context.to_empty(device="cpu"), skipped, explicit):
        torch.manual_seed(0)
        module.reset_parameters()
        assert_equal_modules(module, expected)
    with torch.device("meta"):
        assigned = kind(3, 5, **options)
    assigned.load_state_dict(expected.state_dict(), assign=True)
    assert_equal_modules(assigned, expected)


@pytest.mark.slow
def test_shapes_on_meta() -> None:
    rnn = ORGaNICsRNN(3, 5, 2, device="meta")
    output, state = rnn(torch.empty(6, 2, 3, device="meta"), rnn.draw_state(2))
    assert output.is_meta
    assert output.shape == (6, 2, 5)
    assert state.b0.shape == (2, 2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_a_default_device_of_their_own(backend: str) -> None:
    """Modules on the CPU work whatever the default device is."""
    rnn, generator = ORGaNICsRNN(3, 5, 2, backend=backend), torch.Generator().manual_seed(0)
    x = torch.rand(4, 2, 3)
    expected, _ = rnn(x, rnn.draw_state(2, generator=generator))
    packed = nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])
    generator.manual_seed(0)
    tensors: list[Tensor] = []
    try:
        torch.set_default_device("meta")
        output, state = rnn(x, rnn.draw_state(2, generator=generator))
        output.sum().backward()
        packed, _ = rnn(packed, rnn.rest_state(2))
        cell: Any = rnn.cells[0]
        report = check_trajectory(cell, x)
        for recurrence in CHOICES["recurrence"]:
            module = ORGaNICsRNN(3, 5, recurrence=recurrence, device="cpu")
            module.load_state_dict(module.state_dict())
            module.reset_parameters()
            tensors = [*module(x)[0], *tensors]
    finally:
        torch.set_default_device(None)
    tensors += [output, *state, packed.data, *report.largest_magnitude, report.checked]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    torch.testing.assert_close(output, expected)


def test_an_option_by_its_former_name() -> None:
    """Weights saved before `input_gains` became `input_gain`."""
    first, second = (ORGaNICsRNN(3, 5, input_gain="fixed") for _ in range(2))
    state = first.state_dict()
    entry = "cells.0._extra_state"
    text = bytes(state[entry].tolist()).replace(b'"input_gain"', b'"input_gains"')
    assert b'"input_gains"' in text
    state[entry] = torch.tensor(list(text), dtype=torch.uint8)
    second.load_state_dict(state)
    x = torch.randn(4, 2, 3)
    assert torch.equal(first(x)[0], second(x)[0])
    with pytest.raises(ValueError, match="input_gain: saved with 'fixed', here 'dynamic'"):
        ORGaNICsRNN(3, 5).load_state_dict(state)


DIFFERENT = [
    ({"max_step_y": 0.3}, {}, r"cells\.0\.max_step_y: saved with 0\.3, here 0\.02"),
    ({"max_step_a": 0.3}, {}, r"cells\.0\.max_step_a: saved with 0\.3, here 0\.005"),
    ({"max_step_b": 0.3}, {}, r"cells\.0\.max_step_b: saved with 0\.3, here 0\.1"),
    ({}, {"readout": "rates"}, "readout: saved with 'y', here 'rates'"),
    ({}, {"rectifier": "after_weights"}, "rectifier: saved with 'before_weights', here 'after_w"),
    ({}, {"rectified": False}, "rectified: saved with True, here False"),
    ({}, {"recurrence": "spectral"}, "recurrence: saved with 'bounded', here 'spectral'"),
    ({"input_gain": "fixed"}, {}, "input_gain: saved with 'fixed', here 'dynamic'"),
    ({"learn_time_constants": False}, {}, "learn_time_constants: saved with False, here True"),
    ({"num_layers": 2}, {}, "num_layers: saved with 2, here 1"),
    (
        {"recurrence": "bounded", "input_bound": 2.0},
        {"recurrence": "bounded"},
        r"input_bound: saved with 2\.0, here 1\.0",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "here", "message"), DIFFERENT)
def test_weights_of_another_function_are_refused(
    saved: dict[str, Any], here: dict[str, Any], message: str
) -> None:
    first, second = ORGaNICsRNN(3, 5, **saved), ORGaNICsRNN(3, 5, **here)
    for left, right in ((first, second), (nn.Sequential(first), nn.Sequential(second))):
        before = copy.deepcopy(right)
        for strict in (True, False):
            with pytest.raises(ValueError, match=message) as caught:
                right.load_state_dict(left.state_dict(), strict=strict)
            assert isinstance(caught.value, RuntimeError)
        if isinstance(right, ORGaNICsRNN):
            assert_equal_modules(right, before)


def test_a_difference_of_several_options_is_one_error() -> None:
    first = ORGaNICsRNN(3, 5, readout="rates", rectified=False, max_step_y=0.5)
    with pytest.raises(ValueError, match="readout") as caught:
        ORGaNICsRNN(3, 5).load_state_dict(first.state_dict())
    assert all(name in str(caught.value) for name in ("readout", "rectified", "max_step_y"))


@pytest.mark.parametrize("recurrence", ["unconstrained", "spectral", "identity"])
def test_what_does_not_shape_the_function_is_not_compared(recurrence: str) -> None:
    """Steps that are not learned and sigma are in the state dict themselves."""
    saved = ORGaNICsRNN(
        3,
        5,
        recurrence=recurrence,
        learn_time_constants=False,
        semisaturation=0.7,
        max_step_y=0.3,
        batch_first=True,
        backend="reference",
    )
    other = ORGaNICsRNN(3, 5, recurrence=recurrence, learn_time_constants=False)
    other.load_state_dict(saved.state_dict())
    saved.batch_first = False
    torch.testing.assert_close(run(other), run(saved))


def test_a_state_dict_from_before_loads_with_a_warning() -> None:
    rnn, other = ORGaNICsRNN(3, 5, 2), ORGaNICsRNN(3, 5, 2)
    old = {name: value for name, value in rnn.state_dict().items() if "extra" not in name}
    with pytest.warns(UserWarning, match=r"not checked: num_layers, readout, cells\.0\.") as caught:
        other.load_state_dict(old)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    torch.testing.assert_close(run(other), run(rnn), rtol=0, atol=0)


def test_files() -> None:
    rnn = ORGaNICsRNN(3, 5, recurrence="spectral", max_step_y=0.3)
    file = io.BytesIO()
    torch.save(rnn.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    safetensors = pytest.importorskip("safetensors.torch")
    for state in (saved, safetensors.load(safetensors.save(rnn.state_dict()))):
        other = ORGaNICsRNN(3, 5, recurrence="spectral", max_step_y=0.3)
        other.load_state_dict(state)
        assert_equal_modules(other, rnn)
        with pytest.raises(ValueError, match="max_step_y"):
            ORGaNICsRNN(3, 5, recurrence="spectral").load_state_dict(state)


def test_a_whole_module_in_a_file() -> None:
    rnn, file = ORGaNICsRNN(3, 5, 2, recurrence="spectral"), io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    assert_equal_modules(torch.load(file, weights_only=False), rnn)


def test_averages_and_functional_calls_take_the_state_dict() -> None:
    rnn = ORGaNICsRNN(3, 5)
    average = torch.optim.swa_utils.AveragedModel(rnn)
    average.update_parameters(rnn)
    average.load_state_dict(average.state_dict())
    output, _ = torch.func.functional_call(rnn, dict(rnn.state_dict()), (X,))
    torch.testing.assert_close(output, rnn(X)[0])
    assert_equal_modules(average.module, rnn)


@pytest.mark.parametrize("options", [{}, {"recurrence": "spectral"}])
def test_reset_where_constraints_are_gone(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected = ORGaNICsCell(3, 5, **options)
    cell = ORGaNICsCell(3, 5, **options)
    names = [name for name, _ in cell.parametrizations.named_children()]
    assert "step_b0" in names
    for name in names:
        cell.remove_constraint(name)
    torch.manual_seed(0)
    cell.reset_parameters()
    assert not list(cell.parametrizations.children())
    state = cell.draw_state(2)
    for got, known in zip(cell(X[0], state), expected(X[0], state), strict=True):
        torch.testing.assert_close(got, known)


def test_reset_undoes_changes_of_what_is_fixed() -> None:
    cell = ORGaNICsCell(3, 5, learn_time_constants=False, semisaturation=0.7)
    with torch.no_grad():
        for tensor in cell.buffers():
            tensor.fill_(0.3)
    cell.reset_parameters()
    torch.testing.assert_close(cell.semisaturation, torch.full((5,), 0.7))
    torch.testing.assert_close(cell.step_y, 0.02 * torch.ones(5).sigmoid())


def test_an_assigned_weight_is_not_shared() -> None:
    cell, weight = ORGaNICsCell(3, 5, recurrence="spectral"), torch.eye(5)
    cell.recurrent_weight = weight
    weight.mul_(100)
    torch.testing.assert_close(cell.recurrent_weight, torch.eye(5))


def test_no_warning_in_a_round_trip() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn = ORGaNICsRNN(3, 5, 2)
        ORGaNICsRNN(3, 5, 2).load_state_dict(rnn.state_dict())
