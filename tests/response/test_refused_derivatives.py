"""A gradient that cannot be given is an error: whatever the parameter goes through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, vector
from torch import Tensor
from torch.autograd import forward_ad

from deq_organics import Circuit, DynamicGain, InputGains, simulate

ONES, EYE = torch.ones(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
T = torch.linspace(0, 1, 5, dtype=DOUBLE)


def one(time: Tensor) -> Tensor:
    return torch.ones_like(time)


def switched(p: Tensor) -> Callable[[Tensor], Tensor]:
    """A drive on which the parameter acts only late."""
    return lambda time: p * time if float(time.max()) > 0.5 else ONES


def gains(**given: Any) -> dict[str, Any]:
    return {"gains": InputGains(**{"z": one, "semisaturation": 0.5, **given})}


# What of a simulation a parameter p of two values can be.
WAYS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "samples": lambda p: {"input_drive": p.expand(5, 2)},
    "inhibitory samples": lambda p: {"inhibitory_drive": (T, p.expand(5, 2))},
    "closure": lambda p: {"input_drive": lambda time: p * time},
    "inhibitory closure": lambda p: {"inhibitory_drive": lambda time: p + time},
    "late": lambda p: {"input_drive": switched(p), "jumps": (0.5,)},
    "jumps": lambda p: {
        "input_drive": lambda time: torch.where(time > 0.5, 2.0, 1.0).double(),
        "jumps": 0.5 * p,
    },
    "y0": lambda p: {"y0": p},
    "a0": lambda p: {"a0": p},
    "z": lambda p: gains(z=switched(p)) | {"jumps": (0.5,)},
    "z samples": lambda p: gains(z=p.expand(5, 2)),
    "x": lambda p: gains(x=switched(p), input_gain=DynamicGain(EYE)) | {"jumps": (0.5,)},
    "semisaturation": lambda p: gains(semisaturation=p),
    "input_gain": lambda p: gains(input_gain=p),
    "baseline_gain": lambda p: gains(baseline_gain=p),
    "weight_x": lambda p: gains(x=one, input_gain=DynamicGain(p.unsqueeze(-1))),
    "weight_y": lambda p: gains(baseline_gain=DynamicGain(weight_y=p * EYE)),
    "weight_a": lambda p: gains(input_gain=DynamicGain(weight_a=p * EYE)),
    "tau": lambda p: gains(input_gain=DynamicGain(tau=p, start=0.9)),
    "start": lambda p: gains(baseline_gain=DynamicGain(start=p)),
}


def final(given: dict[str, Any], method: str) -> Tensor:
    circuit = Circuit(ONES, 0.25, 0.5 * EYE, ONES.expand(2, 2))
    return simulate(circuit, T, method=method, rtol=1e-2, **given).y[-1].sum()


@pytest.mark.parametrize("way", WAYS)
def test_scipy_refuses_what_other_methods_differentiate(way: str) -> None:
    p = ONES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(final(WAYS[way](p), "dopri5"), p)
    assert (gradient != 0).any()
    with pytest.raises(RuntimeError, match=r"'scipy_solver', which does not support derivatives"):
        final(WAYS[way](p), "scipy_solver")
    with torch.no_grad():
        assert torch.isfinite(final(WAYS[way](p), "scipy_solver"))
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=r"does not support forward-mode derivatives"),
    ):
        final(WAYS[way](forward_ad.make_dual(ONES.clone(), ONES)), "scipy_solver")


@pytest.mark.parametrize("way", ["late", "tau", "jumps"])
def test_steps_that_are_computed_again_keep_gradients(way: str) -> None:
    p = ONES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(final(WAYS[way](p), "dopri5"), p)
    (found,) = torch.autograd.grad(final(WAYS[way](p) | {"recompute": True}, "dopri5"), p)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)


def test_a_parameter_that_plays_no_part_is_none() -> None:
    """The circuit's own drive, where another is given, has no gradient to lose."""
    p = ONES.clone().requires_grad_()
    circuit = Circuit(p, 0.25, 0.5 * EYE, ONES.expand(2, 2))
    found = simulate(circuit, vector(0.0, 1.0), input_drive=one, method="scipy_solver")
    assert not found.y.requires_grad
