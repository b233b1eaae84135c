"""Second derivatives of layers and circuits where they were NaN: starts, zeros, silence."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev

from deq_organics import Circuit, ORGaNICsDEQ
from deq_organics.equations import firing_rate, linearize, power

pytestmark = pytest.mark.slow

RECURRENCES = ("identity", "spectral", "unconstrained")
EXPONENTS = (1.0, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0)
VARIANTS = list(itertools.product(RECURRENCES, ("attention", "tied"), (False, True)))


def layer_at_its_start(
    recurrence: str, gain: str, rectified: bool, exponent: float, **options: Any
) -> ORGaNICsDEQ:
    torch.manual_seed(0)
    return ORGaNICsDEQ(
        3, 2, recurrence, gain, rectified=rectified, exponent=exponent, dtype=DOUBLE, tol=1e-13,
        **options,
    )  # fmt: skip


def as_function(layer: ORGaNICsDEQ) -> tuple[Callable[..., Tensor], list[Tensor]]:
    names = [name for name, _ in layer.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    return function, leaves


@pytest.mark.parametrize("exponent", [1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize(("recurrence", "gain", "rectified"), VARIANTS)
def test_a_default_start_with_a_zero_row(
    recurrence: str, gain: str, rectified: bool, exponent: float
) -> None:
    """A gradient penalty, differentiated: finite, and as if the zero row were not there."""
    layer = layer_at_its_start(recurrence, gain, rectified, exponent)

    def penalty(rows: Tensor) -> tuple[Tensor, ...]:
        x = rows.clone().requires_grad_()
        rates = layer(x)
        (slope,) = torch.autograd.grad(rates.square().sum(), x, create_graph=True)
        total = slope.square().sum() + rates.sum()
        return torch.autograd.grad(total, list(layer.parameters()), materialize_grads=True)

    rows = torch.randn(4, 3, dtype=DOUBLE)
    expected = penalty(rows)
    found = penalty(torch.cat([rows[:2], torch.zeros(1, 3, dtype=DOUBLE), rows[2:]]))
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("exponent", [1.3, 2.0])
@pytest.mark.parametrize(("recurrence", "gain", "rectified"), VARIANTS)
def test_gradgradcheck_of_a_layer(
    recurrence: str, gain: str, rectified: bool, exponent: float
) -> None:
    """Inside the bound, where the start's own derivatives are taken from."""
    layer = layer_at_its_start(
        recurrence, gain, rectified, exponent, max_singular_value=1.5, learn_semisaturation=True
    )
    function, leaves = as_function(layer)
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(function, (x, *leaves), fast_mode=True)
    assert gradgradcheck(function, (x, *leaves), fast_mode=True)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_hessians_at_the_start_agree(recurrence: str) -> None:
    layer = layer_at_its_start(recurrence, "attention", False, 2.0)
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    x = torch.randn(2, 3, dtype=DOUBLE)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, weights, (x,)).square().sum()

    forward = hessian(loss)(weights)
    reverse = jacrev(grad(loss))(weights)
    for name in weights:
        for other in weights:
            torch.testing.assert_close(forward[name][other], reverse[name][other])
            assert torch.isfinite(forward[name][other]).all()


@pytest.mark.parametrize("gain", ["attention", "tied"])
def test_at_the_start_the_bound_has_the_derivatives_from_within(gain: str) -> None:
    results = []
    for recurrence in ("spectral", "unconstrained"):
        layer = layer_at_its_start(recurrence, gain, False, 2.0)
        function, leaves = as_function(layer)
        x = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()
        first = torch.autograd.grad(function(x, *leaves).square().sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), [x, *leaves])
        # The order of the parameters differs, the shapes tell them apart.
        results.append(sorted(second, key=lambda g: (tuple(g.shape), g.sum().item())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def hessian_by_differences(
    function: Callable[..., Tensor], x: Tensor, step: float = 1e-5
) -> Tensor:
    """Central differences of the gradient."""
    gradient = grad(function)
    columns = []
    for row in torch.eye(x.numel(), dtype=DOUBLE):
        move = step * row.reshape(x.shape)
        columns.append((gradient(x + move) - gradient(x - move)).flatten() / (2 * step))
    return torch.stack(columns, -1)


@pytest.mark.parametrize(
    ("identity", "exponent"),
    [*((True, exponent) for exponent in EXPONENTS), (False, 1.0), (False, 1.5), (False, 3.0)],
)
@pytest.mark.parametrize("rectified", [False, True])
def test_hessian_with_silent_neurons(exponent: float, rectified: bool, identity: bool) -> None:
    """Neurons below threshold, of either sign: every derivative exists there."""
    wr = None if identity else torch.tensor([[0.5, 0.2, 0.0], [-0.3, 0.4, 0.1], [0.1, 0, 0.3]])
    w = torch.tensor([[1.0, 0.3, 0.2], [0.2, 1.0, 0.4], [0.5, 0.1, 1.0]], dtype=DOUBLE)

    def total(d: Tensor) -> Tensor:
        circuit = Circuit(
            d, 0.5, None if wr is None else wr.double(), w, 1.0, 1.0, exponent, rectified
        )
        state = circuit.steady_state(tol=1e-14, on_failure="error")
        return (state.rates * torch.arange(1, 4)).sum() + state.a.square().sum()

    for drive in ([0.7, -0.5, 0.9], [-0.7, -0.5, -0.9]):
        d = torch.tensor(drive, dtype=DOUBLE)
        found = hessian(total)(d)
        torch.testing.assert_close(found, hessian_by_differences(total, d), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("rectified", [False, True])
def test_hessian_at_exactly_zero(exponent: float, rectified: bool) -> None:
    """Derivatives that exist at zero are right; an infinite one is left out, not NaN."""
    w = torch.tensor([[1.0, 0.3], [0.2, 1.0]], dtype=DOUBLE)
    d = torch.tensor([0.7, 0.0], dtype=DOUBLE)

    def states(d: Tensor) -> Tensor:
        state = Circuit(d, 0.5, None, w, 1.0, 1.0, exponent, rectified).steady_state()
        return torch.cat([state.y, state.a])

    found = hessian(states)(d)
    assert torch.isfinite(found).all()
    # The neuron at zero stays there while the other's drive changes.
    alone = hessian(lambda first: states(torch.cat([first, d[1:]])))(d[:1])
    torch.testing.assert_close(found[:, :1, :1], alone)
    if exponent >= 3.0 and not rectified:
        for index in range(4):
            expected = hessian_by_differences(lambda d, k=index: states(d)[k], d)
            torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_powers(exponent: float) -> None:
    x = torch.tensor([-2.0, -1e-3, 1e-3, 0.5, 3.0], dtype=DOUBLE, requires_grad=True)
    functions = [lambda x: power(x, exponent), lambda x: firing_rate(x, exponent)]
    functions.append(lambda x: linearize(x, x + 5, None, exponent).excitation)
    for function in functions:
        torch.testing.assert_close(
            function(x[3:]), {0: 1, 1: 1, 2: exponent * (x[3:] + 5) / x[3:]}[  # type: ignore[operator]
                functions.index(function)
            ] * x[3:] ** exponent,
        )  # fmt: skip
        assert gradcheck(function, x, eps=1e-8, atol=1e-4)
        assert gradgradcheck(function, x, eps=1e-8, atol=1e-4, rtol=1e-2)
        zero = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
        value = function(zero)
        for _ in range(3):
            assert torch.isfinite(value).all()
            (value,) = torch.autograd.grad(value.sum(), zero, create_graph=True, allow_unused=True)
            if value is None or not value.requires_grad:
                break


def test_derivatives_of_even_powers_at_zero() -> None:
    zero = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    value = power(zero, 4.0)
    for expected in (0, 0, 0, 24):
        (value,) = torch.autograd.grad(value, zero, create_graph=True)
        assert value.item() == expected
