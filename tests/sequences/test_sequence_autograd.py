"""Sequences under torch's checkpoints, hooks and transforms."""

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _kernels import DEVICE
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from recurrent import ORGaNICsRNN, State

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"recurrence": "spectral", "num_layers": 2},
    {"recurrence": "identity", "input_gain": "fixed", "learn_time_constants": False},
    {"rectified": False, "readout": "rates"},
]


def backward(
    run: Callable[[Tensor], tuple[Tensor, State]], rnn: ORGaNICsRNN, x: Tensor
) -> list[Tensor | None]:
    rnn.zero_grad()
    x.grad = None
    output, last = run(x)
    (output.square().sum() + last.a.sum()).backward()
    return [x.grad, *(parameter.grad for parameter in rnn.parameters())]


def example(backend: str, **options: Any) -> tuple[ORGaNICsRNN, Tensor]:
    rnn = ORGaNICsRNN(3, 5, backend=backend, device=DEVICE, **FAST, **options)
    steps = 2 if backend == "cuda" else 6
    return rnn, torch.rand(steps, 4, 3, device=DEVICE).requires_grad_()


def without_early_stop(rnn: ORGaNICsRNN, x: Tensor) -> tuple[Tensor, State]:
    with set_checkpoint_early_stop(False):
        return checkpoint(rnn, x, use_reentrant=False)


def keeping_products(rnn: ORGaNICsRNN, x: Tensor) -> tuple[Tensor, State]:
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)
    return checkpoint(rnn, x, use_reentrant=False, context_fn=contexts)


def on_the_host(rnn: ORGaNICsRNN, x: Tensor) -> tuple[Tensor, State]:
    with torch.autograd.graph.save_on_cpu():
        return rnn(x)


def flat(rnn: ORGaNICsRNN, x: Tensor) -> tuple[Tensor, ...]:
    output, state = rnn(x)
    return output, *state


def reentrant(rnn: ORGaNICsRNN, x: Tensor) -> tuple[Tensor, State]:
    """It knows of no tensors within a tuple of the results."""
    output, *state = checkpoint(flat, rnn, x, use_reentrant=True)
    return output, State(*state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        lambda rnn, x: checkpoint(rnn, x, use_reentrant=False),
        reentrant,
        without_early_stop,
        keeping_products,
        on_the_host,
    ],
    ids=["non-reentrant", "reentrant", "to the end", "selective", "on the host"],
)
def test_checkpoints_and_hooks_change_nothing(backend: str, way: Callable[..., Any]) -> None:
    rnn, x = example(backend, num_layers=2)
    expected = backward(rnn, rnn, x)
    got = backward(functools.partial(way, rnn), rnn, x)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.slow
def test_checkpoints_of_pieces(backend: str) -> None:
    """Each piece of a long sequence kept by its first state alone."""
    rnn, x = example(backend)

    def run(x: Tensor) -> tuple[Tensor, State]:
        outputs, state = [], rnn.rest_state(4)
        for piece in x.split(1):
            output, state = checkpoint(rnn, piece, state, use_reentrant=False)
            outputs.append(output)
        return torch.cat(outputs), state

    for left, right in zip(backward(run, rnn, x), backward(rnn, rnn, x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_nothing_stays_in_memory_after_backward(backend: str) -> None:
    rnn, x = example(backend)
    hidden = x * 2
    kept = weakref.ref(hidden)
    output, last = rnn(hidden)
    loss = output.sum() + sum(part.sum() for part in last)
    del hidden
    loss.backward()
    gc.collect()
    assert kept() is None
    assert output.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_backward_may_run_where_anomalies_are_detected(backend: str) -> None:
    rnn, x = example(backend)
    with torch.autograd.detect_anomaly(check_nan=True):
        got = backward(rnn, rnn, x)
    for left, right in zip(got, backward(rnn, rnn, x), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.slow
def test_a_changed_output_is_an_error_and_no_wrong_gradient(backend: str) -> None:
    rnn, x = example(backend)
    output, _ = rnn(x)
    with torch.no_grad():
        output.add_(1.0)
    if backend == "reference":
        output.sum().backward()
    else:
        with pytest.raises(RuntimeError, match=r"modified .*inplace"):
            output.sum().backward()


@pytest.mark.slow
def test_batched_gradients_point_to_the_reference(backend: str) -> None:
    rnn, x = example(backend)

    def results(x: Tensor) -> Tensor:
        return rnn(x)[0].sum((1, 2))

    def jacobian() -> Any:
        return torch.autograd.functional.jacobian(results, x.detach(), vectorize=True)

    if backend != "reference":
        with pytest.raises(
            RuntimeError, match=r"batched gradients .* expected backend='reference'"
        ):
            jacobian()
        with pytest.raises(
            RuntimeError, match=r"batched gradients .* expected backend='reference'"
        ):
            torch.autograd.grad(
                results(x), x, torch.eye(len(x), device=DEVICE), is_grads_batched=True
            )
        rnn.backend = "reference"
    plain = torch.autograd.functional.jacobian(results, x.detach())
    torch.testing.assert_close(jacobian(), plain)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", OPTIONS)
def test_transforms_of_torch_func(options: dict[str, Any]) -> None:
    models = [ORGaNICsRNN(3, 4, **FAST, **options) for _ in range(3)]
    with torch.no_grad():
        for parameter in nn.ModuleList(models).parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x = torch.rand(4, 2, 3)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (x,))[0]

    for model, found in zip(models, torch.func.vmap(call)(parameters, buffers), strict=True):
        torch.testing.assert_close(found, model(x)[0])

    cells = [model.cells[0] for model in models]
    stacked = torch.func.stack_module_state(cells)
    cell = copy.deepcopy(cells[0]).to("meta")
    many = torch.func.vmap(lambda *both: torch.func.functional_call(cell, both, (x[0],)).y)
    for one, y in zip(cells, many(*stacked), strict=True):
        torch.testing.assert_close(y, one(x[0]).y)

    rnn = models[0]
    named: dict[str, Tensor] = dict(rnn.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output, last = torch.func.functional_call(rnn, parameters, (x,))
        return output.square().sum() + last.b.sum()

    gradients = torch.func.grad(loss)(named, x)
    expected = torch.autograd.grad(loss(named, x), list(named.values()), materialize_grads=True)
    each = torch.func.vmap(torch.func.grad(loss), (None, 1))(named, x.unsqueeze(2))
    for name, known in zip(named, expected, strict=True):
        torch.testing.assert_close(gradients[name], known)
        torch.testing.assert_close(each[name].sum(0), known)

    def output(x: Tensor) -> Tensor:
        return rnn(x)[0]

    jacobian = torch.autograd.functional.jacobian(output, x)
    torch.testing.assert_close(torch.func.jacrev(output)(x), jacobian)
    torch.testing.assert_close(torch.func.jacfwd(output)(x), jacobian)
    _, tangent = torch.func.jvp(output, (x,), (torch.ones_like(x),))  # type: ignore[misc]
    torch.testing.assert_close(tangent, jacobian.sum((-3, -2, -1)))
    forward = torch.autograd.functional.jacobian(output, x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, jacobian)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("recurrence", ["unconstrained", "spectral", "identity"])
def test_second_derivatives_are_finite_where_training_starts(recurrence: str) -> None:
    """Every singular value of an orthogonal ``Wr`` is 1, its bound."""
    rnn = ORGaNICsRNN(2, 4, backend="reference", recurrence=recurrence, **FAST)
    x = torch.rand(3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rnn(x)[0].square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    found = {name: parameter.grad for name, parameter in rnn.named_parameters()}
    assert all(value is not None and value.isfinite().all() for value in found.values())
    name = "cells.0.gain_weight_x"
    cell: Any = rnn.cells[0]
    weights, direction = cell.gain_weight_x, torch.randn(4, 2)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weights.add_(direction, alpha=sign * 1e-5)
        (gradient,) = torch.autograd.grad(rnn(x)[0].square().sum(), x)
        values.append(gradient.square().sum())
        with torch.no_grad():
            weights.sub_(direction, alpha=sign * 1e-5)
    difference = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close((found[name] * direction).sum(), difference, rtol=1e-5, atol=1e-9)
