"""Every bad argument is refused with its name, what came and what was expected."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recurrent import ORGaNICsCell, ORGaNICsRNN, State, check_trajectory

X = torch.rand(6, 2, 3)


def state(layers: int = 1, batch: int = 2, n: int = 5, **replaced: Tensor) -> State:
    return State(*torch.rand(4, layers, batch, n))._replace(**replaced)


CONSTRUCTION = [
    ({"input_size": 0}, ValueError, "input_size: got 0, expected an int of at least 1"),
    ({"input_size": 3.0}, TypeError, "input_size: got 3.0"),
    ({"hidden_size": -1}, ValueError, "hidden_size: got -1"),
    ({"hidden_size": True}, TypeError, "hidden_size: got True"),
    ({"num_layers": 0}, ValueError, "num_layers: got 0"),
    ({"batch_first": 1}, TypeError, r"batch_first: got 1 \(int\), expected True or False"),
    ({"rectified": "yes"}, TypeError, r"rectified: got 'yes' \(str\), expected True or False"),
    ({"learn_time_constants": None}, TypeError, "learn_time_constants: got None"),
    ({"backend": "gpu"}, ValueError, "backend: got 'gpu', expected one of 'auto', 'cuda'"),
    ({"recurrence": "orthogonal"}, ValueError, "recurrence: got 'orthogonal'"),
    ({"input_gain": "attention"}, ValueError, "input_gain: got 'attention'"),
    ({"readout": "a"}, ValueError, "readout: got 'a', expected one of 'y', 'rates'"),
    ({"rectifier": "none"}, ValueError, "rectifier: got 'none'"),
    (
        {"rectifier": "after_weights", "rectified": False},
        ValueError,
        "rectifier: got 'after_weights' with rectified=False",
    ),
    ({"semisaturation": 0.0}, ValueError, r"semisaturation: got 0.0, expected a number in \(0"),
    ({"semisaturation": "1"}, TypeError, "semisaturation: got '1'"),
    ({"max_step_y": 1.5}, ValueError, r"max_step_y: got 1.5, expected a number in \(0, 1\]"),
    ({"max_step_a": 0.0}, ValueError, "max_step_a: got 0.0"),
    ({"max_step_b": float("nan")}, ValueError, "max_step_b: got nan"),
    ({"dtype": torch.int64}, TypeError, "dtype: got torch.int64"),
    ({"dropout": 0.5}, TypeError, "dropout"),
]

CALLS = [
    ((X.tolist(),), TypeError, "x: got list, expected a torch.Tensor"),
    ((X.long(),), TypeError, "x: got dtype torch.int64"),
    ((X.double(),), ValueError, "x: got torch.float64, expected torch.float32"),
    ((X[..., :2],), ValueError, r"x: got shape \(6, 2, 2\), expected \(T, B, 3\) or \(T, 3\)"),
    ((X[0, 0],), ValueError, r"x: got shape \(3,\)"),
    ((X[:0],), ValueError, r"x: got shape \(0, 2, 3\), expected at least one step"),
    ((X.to("meta"),), ValueError, "x: got device meta, expected cpu"),
    ((X.index_fill(0, torch.tensor([2]), torch.nan),), ValueError, "x: got 6 NaN or infinite"),
    ((X, torch.rand(1, 2, 5)), TypeError, "state: got Tensor, expected a State of four tensors"),
    ((X, (torch.rand(1, 2, 5),) * 2), TypeError, "state: got tuple of length 2"),
    ((X, state(batch=3)), ValueError, r"state.y: got shape \(1, 3, 5\), expected \(1, 2, 5\)"),
    ((X, state(layers=2)), ValueError, r"state.y: got shape \(2, 2, 5\)"),
    ((X, state(a=torch.rand(1, 2, 4))), ValueError, r"state.a: got shape \(1, 2, 4\)"),
    ((X, state(b=None)), TypeError, "state.b: got NoneType"),
    ((X, state(b0=torch.rand(1, 2, 5).double())), ValueError, "state.b0: got torch.float64"),
    ((X, state(y=torch.full((1, 2, 5), torch.inf))), ValueError, "state.y: got 10 NaN or inf"),
    ((X[:, 0], state()), ValueError, r"state.y: got shape \(1, 2, 5\), expected \(1, 5\)"),
]


@pytest.mark.parametrize(("options", "error", "message"), CONSTRUCTION)
def test_construction(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ORGaNICsRNN(**{"input_size": 3, "hidden_size": 5, **options})


def test_numbers_of_numpy_are_numbers() -> None:
    options: dict[str, Any] = {
        "rectified": np.bool_(True),
        "learn_time_constants": np.True_,
        "batch_first": np.bool_(False),
        "semisaturation": np.float32(0.5),
        "max_step_y": np.float64(0.25),
        "max_step_a": np.float16(0.5),
    }
    rnn = ORGaNICsRNN(np.int64(3), np.int32(5), np.array(2), **options)  # type: ignore[arg-type]
    plain = ORGaNICsRNN(
        3, 5, 2, **{name: np.asarray(value).item() for name, value in options.items()}
    )
    plain.load_state_dict(rnn.state_dict())
    assert repr(rnn) == repr(plain)
    torch.testing.assert_close(rnn(X)[0], plain(X)[0])
    report = check_trajectory(rnn.cells[0], X, every=np.int64(4), limit=np.float32(1e3))  # type: ignore[arg-type]
    assert report.checked.tolist() == [0, 4]


@pytest.mark.parametrize(("arguments", "error", "message"), CALLS)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_call(
    arguments: tuple[Any, ...], error: type[Exception], message: str, backend: str
) -> None:
    rnn = ORGaNICsRNN(3, 5, backend=backend)
    with pytest.raises(error, match=message):
        rnn(*arguments)


def test_batch_first_names_its_layout() -> None:
    rnn = ORGaNICsRNN(3, 5, batch_first=True)
    with pytest.raises(ValueError, match=r"expected \(B, T, 3\) or \(T, 3\)"):
        rnn(torch.rand(6, 2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X,), ValueError, r"x: got shape \(6, 2, 3\), expected \(B, 3\) or \(3,\)"),
        ((X[0], state()), ValueError, r"state.y: got shape \(1, 2, 5\), expected \(2, 5\)"),
    ],
)
def test_cell(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ORGaNICsCell(3, 5)(*arguments)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("normalization_weight", torch.full((5, 5), 1.0), "largest value of 1, expected values"),
        ("normalization_weight", torch.full((5, 5), -0.1), "expected positive values"),
        ("step_y", torch.full((5,), 0.02), r"expected values in \(0, 0.02\)"),
        ("step_b", torch.zeros(5), r"from 0 to 0, expected values in \(0, 0.1\)"),
        ("recurrent_weight", 2 * torch.eye(5), "largest singular value of 2, expected at most 1"),
    ],
)
def test_assigned_parameters(name: str, value: Tensor, message: str) -> None:
    cell = ORGaNICsCell(3, 5, recurrence="spectral")
    with pytest.raises(ValueError, match=message):
        setattr(cell, name, value)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.nn.RNNCell(3, 5), X), {}, TypeError, "cell: got RNNCell, expected an ORGaNICsCell"),
        ((None, X[0, 0]), {}, ValueError, r"x: got shape \(3,\)"),
        ((None, X[:0]), {}, ValueError, "expected at least one step"),
        ((None, X), {"every": 0}, ValueError, "every: got 0"),
        ((None, X), {"limit": -1.0}, ValueError, "limit: got -1.0"),
        ((None, X, state()), {}, ValueError, r"state.y: got shape \(1, 2, 5\), expected \(2, 5\)"),
    ],
)
def test_check_trajectory(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    cell, *rest = arguments
    with pytest.raises(error, match=message):
        check_trajectory(cell or ORGaNICsCell(3, 5), *rest, **options)
