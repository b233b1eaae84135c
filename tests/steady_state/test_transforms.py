"""torch.func, torch.compile and autocast."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from _circuits import DOUBLE
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from deq_organics import Circuit, ORGaNICsDEQ, SteadyStateWarning

NAMES = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")


@pytest.fixture
def tensors(parameters: Callable[..., dict[str, Any]]) -> tuple[Tensor, ...]:
    """Five circuits: drive and inhibitory_drive per circuit, weights shared."""
    arguments = parameters((5,), 3)
    c = arguments["inhibitory_drive"] * torch.linspace(1, 2, 5, dtype=DOUBLE).unsqueeze(-1)
    return (
        arguments["input_drive"],
        c,
        0.9 * arguments["recurrent_weight"],
        arguments["normalization_weight"],
    )


def state_of(d: Tensor, c: Tensor, wr: Tensor, w: Tensor) -> Tensor:
    state = Circuit(d, c, wr, w).steady_state(tol=1e-13, on_failure="error")
    return torch.cat([state.y, state.a], -1)


def energy(d: Tensor, c: Tensor, wr: Tensor, w: Tensor) -> Tensor:
    return state_of(d, c, wr, w).square().sum()


PER_SAMPLE = (0, 0, None, None)


def autograd_of_sample(tensors: Sequence[Tensor], index: int) -> tuple[Tensor, ...]:
    leaves = [t[index] if k < 2 else t for k, t in enumerate(tensors)]
    leaves = [t.clone().requires_grad_() for t in leaves]
    return torch.autograd.grad(energy(*leaves), leaves)


def test_grad(tensors: tuple[Tensor, ...]) -> None:
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(energy(*leaves), leaves)
    found = grad(energy, argnums=(0, 1, 2, 3))(*tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_vmap_is_the_batch(tensors: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(vmap(state_of, in_dims=PER_SAMPLE)(*tensors), state_of(*tensors))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_one_argument(tensors: tuple[Tensor, ...], name: str) -> None:
    """Also over weights alone, and over a dimension that is not the first."""
    position = NAMES.index(name)
    base = [t[0] if k < 2 else t for k, t in enumerate(tensors)]
    stack = torch.stack([scale * base[position] for scale in (1.0, 0.7, 0.4)], 1)
    in_dims = tuple(1 if k == position else None for k in range(4))
    found = vmap(state_of, in_dims=in_dims)(*base[:position], stack, *base[position + 1 :])  # type: ignore[call-arg]
    for index in range(3):
        alone = [stack[:, index] if k == position else t for k, t in enumerate(base)]
        torch.testing.assert_close(found[index], state_of(*alone))


def test_vmap_of_vmap(tensors: tuple[Tensor, ...]) -> None:
    d, c, wr, w = tensors
    weights = torch.stack([wr, 0.5 * wr])
    inner = vmap(state_of, in_dims=PER_SAMPLE)
    found = vmap(inner, in_dims=(None, None, 0, None))(d, c, weights, w)
    for index in range(2):
        torch.testing.assert_close(found[index], state_of(d, c, weights[index], w))


def test_per_sample_gradients(tensors: tuple[Tensor, ...]) -> None:
    found = vmap(grad(energy, argnums=(0, 1, 2, 3)), in_dims=PER_SAMPLE)(*tensors)
    for index in (0, 4):
        for one, other in zip(found, autograd_of_sample(tensors, index), strict=True):
            torch.testing.assert_close(one[index], other)


def test_jacobians_agree(tensors: tuple[Tensor, ...]) -> None:
    everything = (0, 1, 2, 3)
    reverse = jacrev(state_of, argnums=everything)(*tensors)
    forward = jacfwd(state_of, argnums=everything)(*tensors)
    for one, other in zip(reverse, forward, strict=True):
        torch.testing.assert_close(one, other)


def test_jvp_and_vjp_are_adjoint(tensors: tuple[Tensor, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    tangents = tuple(torch.randn(t.shape, generator=generator, dtype=DOUBLE) for t in tensors)
    value, push = jvp(state_of, tensors, tangents)  # type: ignore[misc]
    cotangent = torch.randn(value.shape, generator=generator, dtype=DOUBLE)
    _, pull = vjp(state_of, *tensors)  # type: ignore[misc]
    left = (push * cotangent).sum()
    right = sum((p * t).sum() for p, t in zip(pull(cotangent), tangents, strict=True))
    torch.testing.assert_close(left, right)


def test_hessians_agree(tensors: tuple[Tensor, ...]) -> None:
    d, c, wr, w = tensors
    sample = (d[0], c[0], wr, w)
    forward_over_reverse = hessian(energy)(*sample)
    reverse_over_reverse = jacrev(jacrev(energy))(*sample)
    torch.testing.assert_close(forward_over_reverse, reverse_over_reverse)
    torch.testing.assert_close(reverse_over_reverse, reverse_over_reverse.mT)
    batched = vmap(hessian(energy), in_dims=PER_SAMPLE)(*tensors)
    torch.testing.assert_close(batched[0], forward_over_reverse)


@pytest.mark.slow
def test_failures_are_reported_under_vmap() -> None:
    one = torch.ones(1, 1, dtype=DOUBLE)

    def solve(d: Tensor) -> Tensor:
        return Circuit(d, 0.5, -one, one).steady_state().y

    with pytest.warns(SteadyStateWarning, match="1 of 2 circuits"):
        y = vmap(solve)(torch.tensor([[0.1], [1.0]], dtype=DOUBLE))
    assert y.isnan().squeeze(-1).tolist() == [False, True]


@pytest.fixture
def layer() -> ORGaNICsDEQ:
    torch.manual_seed(0)
    layer = ORGaNICsDEQ(4, 3, dtype=DOUBLE, tol=1e-12)
    matrix = torch.randn(3, 3, dtype=DOUBLE)
    layer.recurrent_weight = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)
    return layer


def test_functional_call(layer: ORGaNICsDEQ) -> None:
    x = torch.randn(5, 4, dtype=DOUBLE)
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    torch.testing.assert_close(functional_call(layer, weights, (x,)), layer(x))
    found = grad(lambda p: functional_call(layer, p, (x,)).sum())(weights)
    expected = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_per_sample_gradients_of_a_layer(layer: ORGaNICsDEQ) -> None:
    x = torch.randn(5, 4, dtype=DOUBLE)
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,)).sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    expected = torch.autograd.grad(layer(x[2]).sum(), list(layer.parameters()))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one[2], other)


def test_ensemble_of_weights(layer: ORGaNICsDEQ) -> None:
    x = torch.randn(5, 4, dtype=DOUBLE)
    weights = {n: torch.stack([p.detach(), 0.9 * p.detach()]) for n, p in layer.named_parameters()}
    found = vmap(lambda p: functional_call(layer, p, (x,)))(weights)
    for index in range(2):
        one = {name: value[index] for name, value in weights.items()}
        torch.testing.assert_close(found[index], functional_call(layer, one, (x,)))


def test_jacobians_of_a_layer(layer: ORGaNICsDEQ) -> None:
    x = torch.randn(4, dtype=DOUBLE)
    torch.testing.assert_close(jacrev(layer)(x), jacfwd(layer)(x))


# torch's own tracer looks at .grad of the tensors between its graphs.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compile() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), ORGaNICsDEQ(4, 3), nn.Linear(3, 2))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 6)
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected)
    weights = list(model.parameters())
    first = torch.autograd.grad(expected.square().sum(), weights)
    second = torch.autograd.grad(found.square().sum(), weights)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


class TestAutocast:
    def test_a_layer_solves_in_single_precision(self) -> None:
        torch.manual_seed(0)
        layer = ORGaNICsDEQ(6, 5, recurrence="unconstrained")
        with torch.no_grad():
            layer.recurrent_weight.add_(0.1 * torch.randn(5, 5))
        x = torch.randn(8, 6)
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(x)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x.bfloat16()).dtype == torch.float32

    def test_backward(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), ORGaNICsDEQ(4, 3), nn.Linear(3, 2))
        x = torch.randn(5, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
            out.float().square().sum().backward()
        assert out.dtype == torch.bfloat16
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    def test_a_circuit_is_solved_to_tol(self, circuit: Callable[..., Circuit]) -> None:
        batch = circuit((10,), 4, dtype=torch.float32)
        expected = batch.steady_state()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = batch.steady_state()
        assert torch.equal(state.y, expected.y)
        assert (state.residual <= 1e-6).all()
