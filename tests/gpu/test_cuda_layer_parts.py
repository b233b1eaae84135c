"""The layer's own kernels, its bound and its gated drive, against float64."""

from typing import Any

import pytest
import torch
from _kernels import DEVICE, KERNELS, pass_self_checks
from torch import Tensor, nn

from deq_organics import ORGaNICsDEQ, singular_value
from deq_organics.gated_drive import gated_drive, triton
from deq_organics.layer import _gated_drive
from deq_organics.parametrizations import SingularValueBound
from deq_organics.steady_state.backends.triton import search

pytestmark = KERNELS


@pytest.fixture(autouse=True)
def _kernels_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        for module in (search, triton, singular_value):
            monkeypatch.setattr(module, "kernel_refusal", lambda device: None)
        pass_self_checks(monkeypatch)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def clustered(n: int, gap: float) -> Tensor:
    """A matrix whose largest singular values are 2, 2 - gap, 2 - 2 gap."""
    left, right = torch.linalg.qr(gaussian(2, n, n))[0]
    values = torch.linspace(1.0, 0.0, n, device=DEVICE)
    values[:3] = 2.0 - gap * torch.arange(3, device=DEVICE)
    return left * values @ right


class TestBound:
    @pytest.mark.slow
    @pytest.mark.parametrize("bound", [0.5, 3.0])
    @pytest.mark.parametrize(
        "weight",
        [
            gaussian(1, 1),
            1e-3 * gaussian(5, 5),
            gaussian(5, 5),
            1e15 * gaussian(16, 16),
            gaussian(80, 80),
            clustered(33, 3e-2),
            10 * torch.tensor([[1.0, -1.0], [0.0, 0.0]], device=DEVICE),
        ],
    )
    def test_value_and_gradient(self, weight: Tensor, bound: float) -> None:
        constraint, direction = SingularValueBound(bound), gaussian(*weight.shape, seed=1)
        single = weight.clone().requires_grad_()
        double = weight.double().requires_grad_()
        found, expected = constraint(single), SingularValueBound(bound)._scale(double) * double
        assert relative(found, expected) < 1e-6
        (grad,) = torch.autograd.grad((found * direction).sum(), single)
        (exact,) = torch.autograd.grad((expected * direction.double()).sum(), double)
        # Near one row the gradient vanishes: the scale of what cancels is that of the direction.
        size = float((constraint._scale(double.detach()) * direction.double()).norm())
        assert float((grad - exact).norm()) <= 5e-5 * max(float(exact.norm()), 0.1 * size)

    @pytest.mark.parametrize(
        "weight", [torch.zeros(4, 4), torch.eye(7), 0.2 * gaussian(6, 6).cpu()]
    )
    def test_what_is_within_the_bound_is_left_as_it_is(self, weight: Tensor) -> None:
        weight = weight.to(DEVICE).requires_grad_()
        bounded = SingularValueBound(1.5)(weight)
        assert torch.equal(bounded, weight)
        (grad,) = torch.autograd.grad(bounded.sum(), weight)
        assert (grad == 1).all()

    def test_singular_values_that_coincide(self) -> None:
        weight = (1.3 * torch.linalg.qr(gaussian(20, 20))[0]).requires_grad_()
        bounded = SingularValueBound(1.0)(weight)
        torch.testing.assert_close(bounded, weight / 1.3, rtol=1e-5, atol=1e-6)
        bounded.sum().backward()
        assert torch.isfinite(weight.grad).all()

    def test_second_derivatives(self) -> None:
        weight, direction = gaussian(4, 4), gaussian(4, 4, seed=1)
        results = []
        for leaf in (weight.clone().requires_grad_(), weight.double().requires_grad_()):
            bounded = SingularValueBound(1.0)(leaf)
            (first,) = torch.autograd.grad(
                (bounded * direction.to(leaf)).sum(), leaf, create_graph=True
            )
            results.append(torch.autograd.grad(first.square().sum(), leaf)[0])
        assert relative(*results) < 1e-4

    def test_what_it_cannot_take(self) -> None:
        assert singular_value.refusal(gaussian(3, 3)) is None
        for weight in (gaussian(129, 129), gaussian(2, 3, 3), gaussian(3, 3).double()):
            assert singular_value.refusal(weight) is not None


class TestGatedDrive:
    @pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 40)])
    @pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
    def test_value_and_gradient(self, shape: tuple[int, ...], scale: float) -> None:
        results = []
        direction = gaussian(*shape, seed=2)
        for dtype in (torch.float32, torch.float64):
            leaves = [
                (scale * gaussian(*shape)).to(dtype).requires_grad_(),
                gaussian(*shape, seed=1).to(dtype).requires_grad_(),
            ]
            if dtype == torch.float32:
                gated = gated_drive(leaves[0], leaves[1], _gated_drive, "cuda")
            else:
                gated = _gated_drive(*leaves)
            grads = torch.autograd.grad((gated * direction.to(dtype)).sum(), leaves)
            results.append((gated, *grads))
        (gated, by_drive, by_logit), (exact, exact_by_drive, exact_by_logit) = results
        assert relative(gated, exact) < 1e-6
        assert relative(by_logit, exact_by_logit) < 1e-6
        if shape[-1] > 1:
            assert relative(scale * by_drive.double(), scale * exact_by_drive) < 1e-5

    def test_a_drive_of_zero(self) -> None:
        zero = torch.zeros(2, 4, device=DEVICE, requires_grad=True)
        logit = gaussian(2, 4)
        gated = gated_drive(zero, logit, _gated_drive, "cuda")
        assert (gated == 0).all()
        (grad,) = torch.autograd.grad(gated.sum(), zero)
        (known,) = torch.autograd.grad(_gated_drive(zero, logit).sum(), zero)
        assert (known == 0).all()
        assert torch.equal(grad, known)

    def test_second_derivatives(self) -> None:
        results = []
        for dtype, function in (
            (torch.float32, lambda d, g: gated_drive(d, g, _gated_drive, "cuda")),
            (torch.float64, _gated_drive),
        ):
            leaves = [gaussian(2, 4, seed=seed).to(dtype).requires_grad_() for seed in (0, 1)]
            gated = function(*leaves)
            (first,) = torch.autograd.grad(gated.square().sum(), leaves[1], create_graph=True)
            results.append(torch.autograd.grad(first.square().sum(), leaves[0])[0])
        assert relative(*results) < 1e-4

    def test_the_layer_takes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: Any = []
        whole = gated_drive
        monkeypatch.setattr(
            "deq_organics.gated_drive.gated_drive", lambda *parts: calls.append(1) or whole(*parts)
        )
        layer, x = ORGaNICsDEQ(3, 6, device=DEVICE), torch.rand(4, 3, device=DEVICE)
        found = layer.circuit(x).input_drive
        exact = nn.functional.linear(x, layer.gain_weight).sigmoid() * nn.functional.normalize(
            nn.functional.linear(x, layer.input_weight)
        )
        assert calls
        torch.testing.assert_close(found, exact)


def test_a_transform_of_other_tensors_takes_no_kernel() -> None:
    """The weight that the kernel bounds is not transformed itself."""
    layer = ORGaNICsDEQ(4, 3).to(DEVICE)
    with torch.no_grad():
        layer.parametrizations.recurrent_weight.original.copy_(2 * gaussian(3, 3))
    x = gaussian(5, 4)
    found = torch.func.vmap(layer)(x)
    layer.backend = "torch"
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-6)
