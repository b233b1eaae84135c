"""The fused backend against the oracle, both against finite differences, and its refusals."""

from typing import Any

import pytest
import torch
from _derivatives import outputs_and_gradients
from _kernels import FIRST_ON_CPU
from torch import Tensor

from recurrent import ORGaNICsRNN, State
from recurrent import backends as registry
from recurrent.backends.fused import forward as fused

BOTH = ["fused", "reference"]
MODELS: list[dict[str, Any]] = [
    {},
    {"rectifier": "after_weights"},
    {"rectified": False},
]
VARIANTS: list[dict[str, Any]] = [
    {"recurrence": "spectral"},
    {"recurrence": "identity"},
    {"recurrence": "unconstrained"},
    {"input_gain": "fixed"},
    {"learn_time_constants": False, "readout": "rates"},
    {"num_layers": 2, "semisaturation": 0.6},
]
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}


def compare(
    rnn: ORGaNICsRNN,
    steps: int,
    batch: int,
    state: State | None = None,
    segment_tolerance: float = 1e-8,
) -> None:
    layers, n = rnn.num_layers, rnn.hidden_size
    x = torch.rand(steps, batch, rnn.input_size)
    state = state or State(*torch.randn(4, layers, batch, n))
    weights = [torch.randn(steps, batch, n), *torch.randn(4, layers, batch, n)]
    expected, expected_gradients = outputs_and_gradients(rnn, "reference", x, state, weights)
    got, gradients = outputs_and_gradients(rnn, "fused", x, state, weights)
    for left, right in zip(got, expected, strict=True):
        assert (left - right).abs().max() <= 1e-10
    for name, gradient in gradients.items():
        reference = expected_gradients[name]
        error = (gradient - reference).norm() / reference.norm().clamp_min(1e-30)
        assert error <= segment_tolerance, name


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", [{}, *VARIANTS])
@pytest.mark.parametrize("segment", [1, 60, 1 << 18])
def test_fused_equals_reference(
    model: dict[str, Any], variant: dict[str, Any], segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SEGMENT_ELEMENTS", segment)
    compare(ORGaNICsRNN(3, 6, **FAST, **{**variant, **model}), steps=7, batch=5)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", MODELS)
def test_fused_equals_reference_over_a_long_sequence(model: dict[str, Any]) -> None:
    rnn = ORGaNICsRNN(1, 64, **model)
    compare(rnn, steps=784, batch=8, state=rnn.draw_state(8))


@pytest.mark.slow
def test_single_precision_keeps_the_digits_of_small_steps() -> None:
    """784 steps against double precision, no worse than autograd, which adds increments to y."""
    rnn = ORGaNICsRNN(1, 16, backend="fused")
    x, state = torch.rand(784, 2, 1), rnn.draw_state(2)
    weights = [torch.randn(784, 2, 16), *torch.randn(4, 1, 2, 16)]
    errors = []
    single = [outputs_and_gradients(rnn, name, x, state, weights) for name in BOTH]
    expected, exact = outputs_and_gradients(rnn, "reference", x, state, weights, torch.float64)
    known = dict(zip(["output", *State._fields], expected, strict=True)) | {
        f"gradient of {name}": value for name, value in exact.items()
    }
    for values, gradients in single:
        results = zip(known.items(), [*values, *gradients.values()], strict=True)
        errors.append(
            {
                name: float(((got.double() - value).norm() / value.norm()).detach())
                for (name, value), got in results
            }
        )
    for name in known:
        assert errors[0][name] <= 2 * errors[1][name] + 1e-7, name


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("options", [*MODELS, *VARIANTS])
def test_gradcheck(backend: str, options: dict[str, Any]) -> None:
    rnn = ORGaNICsRNN(2, 3, backend=backend, **FAST, **options)
    names = [name for name, _ in rnn.named_parameters()]
    # An orthogonal Wr sits on the kink of the spectral bound.
    noisy = [value.detach() + 0.3 * torch.randn_like(value) for value in rnn.parameters()]
    parameters = [value.requires_grad_() for value in noisy]
    layers = rnn.num_layers
    state = [part.clone().requires_grad_() for part in torch.rand(4, layers, 2, 3) + 0.1]
    x = torch.rand(4, 2, 2, requires_grad=True)

    def run(
        x: Tensor, y: Tensor, a: Tensor, b: Tensor, b0: Tensor, *values: Tensor
    ) -> tuple[Tensor, ...]:
        arguments = dict(zip(names, values, strict=True))
        output, last = torch.func.functional_call(rnn, arguments, (x, State(y, a, b, b0)))
        return output, *last

    # Every entry where all parameters are used, random sums of all entries elsewhere.
    assert torch.autograd.gradcheck(run, (x, *state, *parameters), fast_mode=bool(options))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_gradient_where_the_inhibition_is_silent(value: float) -> None:
    rnn = ORGaNICsRNN(2, 4, **FAST)
    state = rnn.draw_state(3)._replace(a=torch.full((1, 3, 4), value))
    compare(rnn, steps=5, batch=3, state=state)


@pytest.mark.parametrize("keep", ["output", "y", "a", "b", "b0"])
def test_gradient_of_one_result_alone(keep: str) -> None:
    gradients = []
    for backend in ("reference", "fused"):
        torch.manual_seed(1)
        rnn = ORGaNICsRNN(2, 4, backend=backend, dtype=torch.float64, **FAST)
        output, last = rnn(torch.rand(6, 3, 2, dtype=torch.float64))
        value = output if keep == "output" else getattr(last, keep)
        inputs = list(rnn.parameters())
        found = torch.autograd.grad(value.square().sum(), inputs, materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in found]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_backward_twice_over_one_graph() -> None:
    rnn = ORGaNICsRNN(2, 4, backend="fused")
    output, _ = rnn(torch.rand(6, 3, 2))
    loss = output.square().sum()
    first, second = (
        torch.autograd.grad(loss, list(rnn.parameters()), retain_graph=True) for _ in range(2)
    )
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("segment", [1, 36, 1 << 18])
def test_without_gradients_the_numbers_are_the_same(
    segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "SEGMENT_ELEMENTS", segment)
    rnn = ORGaNICsRNN(2, 4, backend="fused")
    x = torch.rand(50, 3, 2)
    expected, _ = rnn(x)
    with torch.no_grad():
        got, _ = rnn(x)
    torch.testing.assert_close(got, expected)


def test_second_derivatives_are_refused_by_name() -> None:
    rnn = ORGaNICsRNN(2, 4, backend="fused")
    output, _ = rnn(torch.rand(6, 3, 2))
    with pytest.raises(RuntimeError, match=r"second derivatives.*expected backend='reference'"):
        torch.autograd.grad(output.sum(), list(rnn.parameters()), create_graph=True)


def test_second_derivatives_of_the_reference() -> None:
    rnn = ORGaNICsRNN(2, 3, backend="reference")
    x = torch.rand(4, 1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rnn(x)[0].square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def test_auto_prefers_native_then_fused_and_says_why_not() -> None:
    rnn, x = ORGaNICsRNN(2, 3), torch.rand(4, 1, 2)
    assert rnn.backend_for(x).backend.name == FIRST_ON_CPU
    double = ORGaNICsRNN(2, 3, dtype=torch.float64).backend_for(x.double())
    assert double.backend.name == "fused"
    assert "native does not support torch.float64, only float32" in double.reason
    # Half precision is stepped in float32; a backend alone does not know that.
    half = ORGaNICsRNN(2, 3, dtype=torch.bfloat16)
    assert half.backend_for(x.bfloat16()).backend.name == FIRST_ON_CPU
    cell: Any = half.cells[0]
    state = State(*torch.rand(4, 1, 3).bfloat16())
    parameters = cell.parameters_of_step().to(torch.bfloat16)
    choice = registry.choose(
        "auto", registry.SequenceWork(cell.model, parameters, x.bfloat16(), state)
    )
    assert choice.backend.name == "reference"
    assert "fused does not support torch.bfloat16" in choice.reason


@pytest.mark.slow
def test_auto_falls_back_under_transforms() -> None:
    rnn = ORGaNICsRNN(2, 3, dtype=torch.float64)
    x = torch.rand(5, 4, 1, 2, dtype=torch.float64)
    batched = torch.func.vmap(lambda row: rnn(row)[0])(x)
    for row, expected in zip(x, batched, strict=True):
        torch.testing.assert_close(rnn(row)[0], expected)
    _, tangent = torch.func.jvp(lambda row: rnn(row)[0], (x[0],), (torch.ones_like(x[0]),))  # type: ignore[misc]
    difference = (rnn(x[0] + 1e-6)[0] - rnn(x[0] - 1e-6)[0]) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-9)


def test_named_fused_refuses_transforms() -> None:
    rnn = ORGaNICsRNN(2, 3, backend="fused")
    with pytest.raises(RuntimeError, match=r"'fused', which does not support torch\.func"):
        torch.func.vmap(lambda row: rnn(row)[0])(torch.rand(5, 4, 1, 2))


def test_a_registered_backend_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        name = "constant"

        def refusal(self, sequence: registry.SequenceWork) -> str | None:
            return None if sequence.x.shape[0] > 2 else "short sequences"

        def run(self, sequence: registry.SequenceWork) -> tuple[Tensor, State]:
            y = sequence.state.y
            return y.new_full((len(sequence.x), *y.shape), 3.0), sequence.state

    monkeypatch.setattr(registry._BACKENDS, "_backends", dict(registry._BACKENDS._backends))
    registry.register(Constant())
    rnn = ORGaNICsRNN(2, 3)
    assert (rnn(torch.rand(4, 1, 2))[0] == 3).all()
    choice = rnn.backend_for(torch.rand(2, 1, 2))
    assert choice.backend.name == FIRST_ON_CPU
    assert "constant does not support short sequences" in choice.reason
    with pytest.raises(ValueError, match="'fused' is taken"):
        registry.register(registry.FusedBackend())  # type: ignore[attr-defined]
