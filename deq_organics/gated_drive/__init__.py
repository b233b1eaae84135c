"""The gated input drive of a layer by one kernel, and its gradient by another."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import is_transformed
from ..dispatch import Choice, PartKernel, choose_part
from . import native, triton

__all__ = ["choose", "gated_drive"]

_Differentiable = Callable[[Tensor, Tensor], Tensor]


class _Kernels(Protocol):
    """What each of the modules beside this one offers."""

    def refusal(self, drive: Tensor, logit: Tensor) -> str | None: ...
    def self_check(self, drive: Tensor) -> str | None: ...
    def forward(self, drive: Tensor, logit: Tensor) -> Tensor: ...
    def backward(self, drive: Tensor, logit: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]: ...


_KERNELS: dict[str, _Kernels] = {"cuda": triton, "native": native}


def choose(backend: str, drive: Tensor, logit: Tensor) -> Choice[str]:
    """By what the gated drive is computed in a layer of that ``backend``, and why.

    Raises:
        RuntimeError: The kernels of the named backend fail their self-check.
    """
    kernels = [
        PartKernel(name, partial(kernel.refusal, drive, logit), partial(kernel.self_check, drive))
        for name, kernel in _KERNELS.items()
    ]
    return choose_part(backend, "input drive", *kernels)


def gated_drive(
    drive: Tensor, logit: Tensor, differentiable: _Differentiable, backend: str
) -> Tensor:
    """``sigmoid(logit) drive / |drive|`` for both ``(*, n)``; 0 for a drive that is 0.

    By the backend that :func:`choose` found: torch's is ``differentiable`` itself, which also gives
    the second derivatives of the kernels.
    """
    if backend == "torch":
        return differentiable(drive, logit)
    gated: Tensor = _GatedDrive.apply(drive, logit, differentiable, _KERNELS[backend])
    return gated


class _GatedDrive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, drive: Tensor, logit: Tensor, differentiable: _Differentiable, kernels: _Kernels
    ) -> Tensor:
        ctx.differentiable, ctx.kernels = differentiable, kernels
        ctx.save_for_backward(drive, logit)
        return kernels.forward(drive, logit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        drive, logit = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            with torch.enable_grad():
                gated = ctx.differentiable(drive, logit)
            by_drive, by_logit = torch.autograd.grad(gated, (drive, logit), grad, create_graph=True)
            return by_drive, by_logit, None, None
        return *ctx.kernels.backward(drive, logit, grad), None, None
