"""The bound of the largest singular value: value and derivatives, also where values coincide."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacrev, vmap

from deq_organics.parametrizations import SingularValueBound
from deq_organics.spectral_norm import bounding_scale

NAN, INF = float("nan"), float("inf")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(n, n, seed=seed))[0]


def with_singular_values(*values: float) -> Tensor:
    n = len(values)
    return orthogonal(n) * torch.tensor(values, dtype=DOUBLE) @ orthogonal(n, seed=1)


def differences(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """First and second derivative along a direction, by values of the function alone."""
    far, near = ([function(x + t * direction) for t in (-k * step, k * step)] for k in (2, 1))
    first = (8 * (near[1] - near[0]) - (far[1] - far[0])) / (12 * step)
    around = 16 * sum(near) - sum(far) - 30 * function(x)
    return first, around / (12 * step**2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 1, 2, 2), (4, 2), (2, 4)])
@pytest.mark.parametrize("bound", [0.4, 1.7])
def test_where_the_largest_is_simple(shape: tuple[int, ...], bound: float) -> None:
    weight = (2 * gaussian(*shape)).requires_grad_()
    expected = bound / torch.linalg.matrix_norm(weight, 2, keepdim=True).clamp_min(bound)
    torch.testing.assert_close(bounding_scale(weight, bound), expected)

    def slope(weight: Tensor) -> Tensor:
        scale = bounding_scale(weight, bound).sum()
        if not scale.requires_grad:
            return torch.zeros_like(weight)
        return torch.autograd.grad(scale, weight, create_graph=True)[0]

    assert gradcheck(lambda w: bounding_scale(w, bound), weight, check_forward_ad=True)
    assert gradgradcheck(lambda w: bounding_scale(w, bound), weight)
    assert gradgradcheck(slope, weight)


@pytest.mark.parametrize(
    ("values", "equal"),
    [
        ((2.0, 2.0, 2.0, 2.0), 4),
        ((2.0, 2.0, 0.7, 0.7), 2),
        ((2.0, 2.0, 2.0, 1.4, 0.0), 3),
        ((2.0, 0.5, 0.5, 0.5), 1),
        ((3e4, 3e4, 1.0), 2),
    ],
)
def test_where_several_coincide(values: tuple[float, ...], equal: int) -> None:
    """The root mean square of those that coincide, differentiated without this module."""
    weight = with_singular_values(*values)

    def oracle(weight: Tensor) -> Tensor:
        top = torch.linalg.svdvals(weight)[..., :equal]
        return weight / top.square().mean(-1).sqrt()[..., None, None]

    bounded = SingularValueBound(1.0)
    projection = gaussian(*weight.shape, seed=5)

    def along(weight: Tensor) -> Tensor:
        return (bounded(weight) * projection).sum()

    gradient = jacrev(along)(weight)
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(along(leaf), leaf)[0], gradient)
    curvature = hessian(along)(weight)
    torch.testing.assert_close(torch.autograd.functional.hessian(along, weight), curvature)
    size = max(values)
    for seed in range(3):
        direction = size * gaussian(*weight.shape, seed=10 + seed)
        first, second = differences(lambda w: (oracle(w) * projection).sum(), weight, direction)
        found = (gradient * direction).sum()
        torch.testing.assert_close(found, first, rtol=1e-6, atol=1e-7)
        found = torch.einsum("ij,ijkl,kl->", direction, curvature, direction)
        torch.testing.assert_close(found, second, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("bound", [1.0, 0.3])
def test_on_the_bound_the_derivatives_are_those_from_within(
    n: int, dtype: torch.dtype, bound: float
) -> None:
    """The identity and orthogonal matrices, where training starts."""
    for weight in (torch.eye(n, dtype=DOUBLE), orthogonal(n)):
        weight = (bound * weight).to(dtype).requires_grad_()
        constrained = SingularValueBound(bound)(weight)
        torch.testing.assert_close(constrained, weight)
        assert torch.linalg.matrix_norm(constrained.double(), 2) <= bound * (
            1 + 4 * torch.finfo(dtype).eps
        )
        cotangent = torch.linspace(-1, 1, n * n, dtype=dtype).reshape(n, n)
        (grad,) = torch.autograd.grad((constrained * cotangent).sum(), weight)
        torch.testing.assert_close(grad, cotangent)
        if n < 10:
            curved = hessian(lambda w: SingularValueBound(bound)(w).sum())(weight.detach())
            assert (curved == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_modes_agree(seed: int) -> None:
    """A batch of matrices within, on and above the bound, eagerly and mapped."""
    weights = torch.stack(
        [0.1 * gaussian(5, 5, seed=seed), orthogonal(5, seed), 3 * orthogonal(5, seed + 1),
         10 * gaussian(5, 5, seed=seed), torch.zeros(5, 5, dtype=DOUBLE)]
    )  # fmt: skip
    bounded = SingularValueBound(1.0)
    expected = torch.stack([bounded(weight) for weight in weights])
    torch.testing.assert_close(bounded(weights), expected)
    torch.testing.assert_close(vmap(bounded)(weights), expected)
    rows = [jacrev(bounded)(weight) for weight in weights]
    torch.testing.assert_close(vmap(jacrev(bounded))(weights), torch.stack(rows))
    assert torch.isfinite(torch.stack(rows)).all()


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-30, 1e30, 1e200, 1e307])
def test_any_size(size: float) -> None:
    weight = (size * gaussian(4, 4)).requires_grad_()
    bounded = SingularValueBound(1.0)(weight)
    unit = gaussian(4, 4) / torch.linalg.matrix_norm(gaussian(4, 4), 2)
    torch.testing.assert_close(bounded, weight if size < 1 else unit, rtol=1e-12, atol=0)
    bounded.sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_meta() -> None:
    weight = torch.empty(2, 3, 3, device="meta", requires_grad=True)
    bounded = SingularValueBound(1.0)(weight)
    bounded.sum().backward()
    assert bounded.shape == weight.grad.shape == (2, 3, 3)


def test_a_batch_whose_values_coincide_in_different_numbers() -> None:
    weights = torch.stack([2 * orthogonal(4), with_singular_values(3.0, 3.0, 1.0, 1.0)])
    weights = torch.cat([weights, gaussian(1, 4, 4), 0.1 * gaussian(1, 4, 4)]).requires_grad_()
    projection = gaussian(4, 4, seed=5)
    (SingularValueBound(1.0)(weights) * projection).sum().backward()
    for weight, found in zip(weights.detach(), weights.grad, strict=True):
        alone = weight.clone().requires_grad_()
        (SingularValueBound(1.0)(alone) * projection).sum().backward()
        torch.testing.assert_close(found, alone.grad)


class TestNotFinite:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    @pytest.mark.parametrize("transform", [lambda f: f, lambda f: vmap(f)])
    def test_the_weight_is_named(self, value: float, transform: Callable[..., Any]) -> None:
        weights = torch.randn(2, 3, 3)
        weights[1, 0, 2] = value
        bounded = SingularValueBound(1.0, "Wr")
        with pytest.raises(ValueError, match=r"^Wr: got 1 NaN or infinite values of 18"):
            transform(bounded)(weights)

    @pytest.mark.slow
    def test_compiled(self) -> None:
        weights = torch.stack([3 * torch.eye(3), torch.full((3, 3), NAN), 0.5 * torch.eye(3)])
        found = torch.compile(SingularValueBound(1.0), backend="eager", fullgraph=True)(weights)
        torch.testing.assert_close(found[::2], SingularValueBound(1.0)(weights[::2]))
        assert found[1].isnan().all()
