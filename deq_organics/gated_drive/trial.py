"""A trial of the kernels of the gated drive: a few rows against torch in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..self_check import compare, generator

__all__ = ["check"]


def check(
    n: int,
    device: torch.device,
    forward: Callable[[Tensor, Tensor], Tensor],
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    """Raise where the kernels do not compute what torch does in float64."""
    drive, logit, grad = torch.randn(3, 3, n, generator=generator(), dtype=torch.float32)
    leaves = [part.double().requires_grad_() for part in (drive, logit)]
    with torch.enable_grad():
        exact = leaves[1].sigmoid() * torch.nn.functional.normalize(leaves[0], eps=0.0)
        exact_grads = torch.autograd.grad(exact, leaves, grad.double())
    drive, logit, grad = (part.to(device) for part in (drive, logit, grad))
    compare("the gated drive", forward(drive, logit), exact, 1e-5)
    by_drive, by_logit = backward(drive, logit, grad)
    compare("the gradient by the logit", by_logit, exact_grads[1], 1e-5)
    # One neuron alone has length 1: its gradient is 0.
    if n > 1:
        compare("the gradient by the drive", by_drive, exact_grads[0], 1e-4)
