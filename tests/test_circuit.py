"""The circuit as a value: shapes that broadcast, numbers for tensors, precision, copies."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, POOL, vector
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("recurrence", ["identity", "shared", "per-circuit"])
def test_leading_dimensions(
    circuit: Callable[..., Circuit],
    any_state: Callable[..., tuple[Tensor, Tensor]],
    batch: tuple[int, ...],
    recurrence: str,
) -> None:
    value = circuit(batch, 4, recurrence=recurrence)
    assert value.batch_shape == batch
    assert value.n == 4
    y, a = any_state(value)
    for part in value.vector_field(y, a):
        assert part.shape == (*batch, 4)
    assert value.jacobian(y, a).shape == (*batch, 8, 8)
    state = value.steady_state()
    assert state.y.shape == state.a.shape == state.rates.shape == (*batch, 4)
    for diagnostic in (state.converged, state.residual, state.iterations, state.status):
        assert diagnostic.shape == batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("inhibitory_drive", (5, 1, 3)),
        ("inhibitory_drive", (1,)),
        ("inhibitory_drive", ()),
        ("tau_y", (5, 1, 3)),
        ("tau_a", (4, 3)),
        ("tau_a", (5, 1, 1)),
        ("recurrent_weight", (5, 1, 3, 3)),
        ("recurrent_weight", (1, 3, 3)),
        ("normalization_weight", (4, 3, 3)),
        ("normalization_weight", (5, 1, 3, 3)),
    ],
)
def test_each_tensor_broadcasts(
    parameters: Callable[..., dict[str, Any]], name: str, shape: tuple[int, ...]
) -> None:
    """One circuit of the broadcast batch answers as it does alone."""
    generator = torch.Generator().manual_seed(3)
    value = 0.3 + 0.1 * torch.rand(shape, generator=generator, dtype=DOUBLE)
    arguments = {**parameters((4,), 3), "tau_y": 1.0, "tau_a": 2.0, name: value}
    batch = Circuit(**arguments)
    state = batch.steady_state(tol=1e-12)
    core = 2 if name.endswith("weight") else 1
    expected = torch.broadcast_shapes((4,), shape[:-core])
    assert batch.batch_shape == expected
    assert state.converged.all()
    last = value.expand(*expected, *value.shape[-core:]).reshape(-1, *value.shape[-core:])[-1]
    alone = Circuit(
        **{**arguments, "input_drive": arguments["input_drive"][-1], name: last}
    ).steady_state(tol=1e-12)
    torch.testing.assert_close(state.y.reshape(-1, 3)[-1], alone.y)
    torch.testing.assert_close(state.a.reshape(-1, 3)[-1], alone.a)


def test_broadcast_weights_have_gradients_of_their_own_shape(
    parameters: Callable[..., dict[str, Any]],
) -> None:
    arguments = parameters((4,), 3)
    leaves = {
        "inhibitory_drive": torch.full((1, 3), 0.4, dtype=DOUBLE, requires_grad=True),
        "recurrent_weight": (0.5 * torch.eye(3, dtype=DOUBLE)[None]).requires_grad_(),
        "normalization_weight": torch.full((2, 1, 3, 3), 0.2, dtype=DOUBLE, requires_grad=True),
        "input_drive": arguments["input_drive"].requires_grad_(),
    }
    state = Circuit(**leaves).steady_state(tol=1e-12)
    grads = torch.autograd.grad(state.rates.sum(), list(leaves.values()))
    for leaf, grad in zip(leaves.values(), grads, strict=True):
        assert grad.shape == leaf.shape
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(
    parameters: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    circuit = Circuit(**parameters(dtype=dtype))
    assert circuit.input_drive.dtype == circuit.recurrent_weight.dtype == torch.float32
    assert circuit.steady_state().y.dtype == torch.float32


def test_precision_is_kept(circuit: Callable[..., Circuit]) -> None:
    for dtype in (torch.float32, torch.float64):
        state = circuit(dtype=dtype).steady_state()
        assert state.y.dtype == state.a.dtype == state.residual.dtype == dtype
        assert state.converged.dtype == torch.bool
        assert state.status.dtype == state.iterations.dtype == torch.int64


def test_it_is_immutable(circuit: Callable[..., Circuit]) -> None:
    value = circuit()
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.exponent = 3.0  # type: ignore[misc]


def test_copies_and_replacement(circuit: Callable[..., Circuit]) -> None:
    value = circuit()
    expected = value.steady_state()
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert torch.equal(other.steady_state().y, expected.y)
    assert dataclasses.replace(value, exponent=3.0).exponent == 3.0
    assert dataclasses.replace(value, recurrent_weight=None).closed_form()[0].shape == (4, 3)


def test_closed_form_has_the_broadcast_shape(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((4,), 3, recurrence="identity")
    w = arguments.pop("normalization_weight").expand(2, 1, 3, 3)
    y, a = Circuit(**arguments, normalization_weight=w).closed_form()
    assert y.shape == a.shape == (2, 4, 3)


def test_noncontiguous_tensors(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((4,), 3)
    strange = {
        "input_drive": arguments["input_drive"].T.contiguous().T,
        "recurrent_weight": arguments["recurrent_weight"].T.contiguous().T,
    }
    found, expected = Circuit(**{**arguments, **strange}), Circuit(**arguments)
    torch.testing.assert_close(found.steady_state().y, expected.steady_state().y)


def test_arguments_are_not_changed(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((4,), 3)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    Circuit(**arguments).steady_state()
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


class TestFromGains:
    def test_is_the_circuit_of_the_papers_quantities(self) -> None:
        z, b, b0 = (
            vector([0.3, -0.4], [0.1, 0.8]),
            vector([0.5, 0.25], [1.0, 2.0]),
            vector(0.5, 0.8),
        )
        for m in (1.5, 2.0, 3.0):
            circuit = Circuit.from_gains(z, b, b0, 0.7, None, POOL, 2.0, 3.0, m, True)
            torch.testing.assert_close(circuit.input_drive, b * z)
            torch.testing.assert_close(circuit.inhibitory_drive, (0.7 * b0) ** m)
            assert (circuit.tau_y == 2.0).all()
            assert (circuit.tau_a == 3.0).all()
            assert (circuit.exponent, circuit.rectified) == (m, True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_loses_no_small_numbers(self, dtype: torch.dtype) -> None:
        z, sigma = torch.tensor([0.25], dtype=dtype), torch.tensor([2.0**-14], dtype=dtype)
        circuit = Circuit.from_gains(z, 1.0, 1.0, sigma, None, torch.ones(1, 1, dtype=dtype))
        assert circuit.inhibitory_drive == 2.0**-28
        layer = ORGaNICsDEQ(2, 3, semisaturation=2.0**-10, dtype=dtype)
        # b0 = 1/2.
        assert (layer.circuit(torch.ones(2, dtype=dtype)).inhibitory_drive == 2.0**-22).all()

    def test_sigma_is_fitted_itself(self) -> None:
        """A single neuron answers half of its largest response to an input of size sigma."""
        sigma = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
        one = torch.ones(1, 1, dtype=DOUBLE)
        state = Circuit.from_gains(vector(0.3), 1.0, 1.0, sigma, None, one).steady_state()
        assert float(state.rates.detach()) == pytest.approx(0.5)
        state.rates.sum().backward()
        # z^2 / (sigma^2 + z^2) by sigma.
        assert float(sigma.grad) == pytest.approx(-2 * 0.3 * 0.09 / 0.18**2)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"z": [1.0]}, TypeError, "z: got list"),
            ({"z": vector(0.3, float("nan"))}, ValueError, "z: got 1 NaN"),
            ({"z": vector(0.3)[0]}, ValueError, r"z: got shape \(\)"),
            ({"input_gain": vector(1.0, float("inf"))}, ValueError, "input_gain: got 1 NaN or inf"),
            ({"input_gain": "1"}, TypeError, "input_gain: got '1'"),
            ({"input_gain": vector(1.0, 1.0, 1.0)}, ValueError, r"input_gain: got shape \(3,\)"),
            ({"baseline_gain": 0.0}, ValueError, "baseline_gain: got 0.0"),
            ({"semisaturation": -1.0}, ValueError, "semisaturation: got -1.0"),
            ({"semisaturation": vector(0.1, 0.0)}, ValueError, "semisaturation: got a smallest"),
            ({"semisaturation": torch.ones(2)}, ValueError, "semisaturation: got torch.float32"),
            ({"z": torch.ones(2, dtype=torch.int64)}, TypeError, "z: got dtype torch.int64"),
            ({"input_gain": float("nan")}, ValueError, "input_gain: got nan"),
            (
                {"z": torch.ones(3, 2).double(), "input_gain": torch.ones(4, 2).double()},
                ValueError,
                "leading dimensions: got z",
            ),
            (
                {"semisaturation": 1e200},
                ValueError,
                r"semisaturation: got 1e\+200",
            ),
            ({"exponent": "2"}, TypeError, "exponent: got '2'"),
        ],
    )
    def test_bad_arguments(
        self, changes: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        given: dict[str, Any] = {"z": vector(0.3, 0.1), "input_gain": 1.0, "baseline_gain": 0.5}
        given |= {"semisaturation": 0.1, "recurrent_weight": None, "normalization_weight": POOL}
        with pytest.raises(error, match=message):
            Circuit.from_gains(**{**given, **changes})
