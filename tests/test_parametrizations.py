"""Constraints on weights: exact, and an assigned value is kept or refused."""

from typing import Any

import pytest
import torch
from _circuits import DOUBLE
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrize

from deq_organics.parametrizations import Nonnegative, Positive, SingularValueBound, UnitInterval


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0])
def test_largest_singular_value(bound: float) -> None:
    constraint = SingularValueBound(bound)
    for scale in (1e-3, 0.1, 1.0, 1e3):
        weight = scale * gaussian(7, 5, 5)
        before = torch.linalg.svdvals(weight)[..., 0]
        after = torch.linalg.svdvals(constraint(weight))[..., 0]
        torch.testing.assert_close(after, before.clamp_max(bound), rtol=1e-12, atol=1e-12)


def test_nothing_is_scaled_up() -> None:
    for weight in (torch.zeros(3, 3, dtype=DOUBLE), 0.3 * torch.eye(3, dtype=DOUBLE)):
        assert torch.equal(SingularValueBound(1.0)(weight), weight)


def test_the_bound_has_no_state_and_no_mode() -> None:
    constraint = SingularValueBound()
    weight = gaussian(4, 4)
    first = constraint(weight)
    constraint.eval()
    assert torch.equal(first, constraint(weight))
    assert not list(constraint.parameters())
    assert not constraint.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_precision(dtype: torch.dtype) -> None:
    weight = SingularValueBound()(gaussian(6, 6).to(dtype))
    assert weight.dtype == dtype
    assert torch.linalg.svdvals(weight.double())[0] <= 1 + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_gradient_of_the_bound(scale: float) -> None:
    weight = (scale * gaussian(4, 4)).requires_grad_()
    assert gradcheck(SingularValueBound(), weight)


def test_gradient_at_the_identity_is_finite() -> None:
    weight = torch.eye(4, dtype=DOUBLE, requires_grad=True)
    SingularValueBound()(weight).sum().backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (Positive(), torch.tensor([1e-6, 1.0, 1e6]).double()),
        (Nonnegative(), torch.tensor([1e-6, 1.0, 1e6]).double()),
        (UnitInterval(), torch.tensor([1e-6, 0.5, 0.999]).double()),
        (SingularValueBound(), 0.2 * torch.eye(3, dtype=DOUBLE)),
    ],
)
def test_an_assigned_value_is_kept(constraint: Any, value: Tensor) -> None:
    torch.testing.assert_close(constraint(constraint.right_inverse(value)), value)
    module = nn.Module()
    module.weight = nn.Parameter(value.clone())
    parametrize.register_parametrization(module, "weight", constraint)
    torch.testing.assert_close(module.weight.detach(), value)
    module.weight = 0.5 * value
    torch.testing.assert_close(module.weight.detach(), 0.5 * value)


@pytest.mark.parametrize("constraint", [Positive(), Nonnegative(), UnitInterval()])
def test_gradients(constraint: Any) -> None:
    assert gradcheck(constraint, gaussian(5).requires_grad_())


def test_a_zero_weight_stays_practically_zero() -> None:
    zero = torch.zeros(3)
    weight = Nonnegative()(Nonnegative().right_inverse(zero))
    assert (weight >= 0).all()
    assert (weight < 1e-37).all()
    assert torch.isfinite(Nonnegative().right_inverse(zero)).all()


def test_repr() -> None:
    assert repr(SingularValueBound(2.0)) == "SingularValueBound(bound=2)"
