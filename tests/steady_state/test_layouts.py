"""How a tensor lies in memory changes no steady state, no gradient and no verdict."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import random_parameters
from _kernels import NATIVE
from _layouts import laid_out, negative
from torch import Tensor

from deq_organics import Circuit, check_stability
from deq_organics.gated_drive import gated_drive
from deq_organics.layer import _gated_drive
from deq_organics.native import addresses
from deq_organics.native.values import smallest_if_finite

NAMES = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")
BACKENDS = [pytest.param("native", marks=NATIVE), "torch"]


def plainly(values: Tensor) -> Tensor:
    return values.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def states_and_gradients(
    given: dict[str, Any], backend: str, weights: list[Tensor], lie: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """States, the gradients of their weighted sum, and the verdicts on states that lie so."""
    leaves = [given[name].detach().requires_grad_() for name in NAMES]
    circuit = Circuit(**{**given, **dict(zip(NAMES, leaves, strict=True))})
    found = circuit.steady_state(backend=backend, on_failure="error")
    gradients = torch.autograd.grad((found.y, found.a), leaves, weights)
    report = check_stability(circuit, (lie(found.y), lie(found.a)))
    assert report.stable.all()
    return [found.y, found.a, *gradients, report.leading_eigenvalue]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_circuits(backend: str, seed: int) -> None:
    draw, n, batch = random.Random(seed), (1, 5, 13)[seed % 3], (1, 7)[seed % 2]
    given = random_parameters((batch,), n, dtype=torch.float32, seed=seed, singular_value=0.6)
    if seed % 4 == 3:
        given["recurrent_weight"] = torch.eye(n)
    given |= {name: laid_out(given[name], draw) for name in NAMES}
    pair = torch.randn(2, batch, n, generator=torch.Generator().manual_seed(seed))
    weights = [laid_out(part, draw) for part in pair]
    plain = {**given, **{name: plainly(given[name]) for name in NAMES}}
    found = states_and_gradients(given, backend, weights, lambda part: negative(part, draw))
    expected = states_and_gradients(plain, backend, list(map(plainly, weights)), plainly)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_gated_drives(backend: str, seed: int) -> None:
    draw = random.Random(seed)
    values = torch.randn(3, (1, 4)[seed % 2], 9, generator=torch.Generator().manual_seed(seed))
    *parts, weights = (laid_out(part, draw) for part in values)
    results = []
    for lie in (lambda part: part.detach(), plainly):
        leaves = [lie(part).requires_grad_() for part in parts]
        gated = gated_drive(leaves[0], leaves[1], _gated_drive, backend)
        results.append([gated, *torch.autograd.grad(gated, leaves, lie(weights))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@NATIVE
def test_what_no_kernel_can_read_is_refused() -> None:
    values = torch.rand(3, 4)
    assert addresses({"x": values})["x"] == values.data_ptr()
    with pytest.raises(ValueError, match=r"x: got .* strides \(1, 4\), expected contiguous"):
        addresses({"x": values.mT})
    with pytest.raises(ValueError, match=r"x: got .*, to be negated, expected contiguous"):
        addresses({"x": torch._neg_view(values)})
    assert smallest_if_finite(torch._neg_view(values)) is None
