"""What kernels share as backends: the circuits that they take, torch for what they leave open."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ...checks import is_transformed, refuse_transforms
from ...problem import Problem
from ..status import Solution
from .base import Adjoint, Work
from .by_torch import TorchSearch

__all__ = ["adjoint_by", "ask_again", "refusal_of"]

FoundT = TypeVar("FoundT", Solution, Adjoint)


def refusal_of(
    work: Work,
    unavailable: Callable[[torch.device], str | None],
    largest_size: int | None = None,
) -> str | None:
    """Why kernels cannot solve such circuits, as part of a sentence; None if they can.

    Args:
        work: The circuits, and how to solve them.
        unavailable: Why the kernels cannot run on a device.
        largest_size: Neurons that the kernels have room for; None if for any number.
    """
    problem = work.problem
    drive, wr, w = problem.input_drive, problem.recurrent_weight, problem.normalization_weight
    if work.follows:
        return "following the dynamics from a start"
    if (refusal := unavailable(drive.device)) is not None:
        return refusal
    if work.options.solver != "auto":
        return f"the solver {work.options.solver!r}, only 'auto'"
    if wr is None:
        return "circuits without recurrent weights: they have a closed form"
    if (transforms := refuse_transforms(problem.tensors())) is not None:
        return transforms
    if any(size != 1 for weight in (wr, w) for size in weight.shape[:-2]):
        return "weights of each circuit's own, only weights that all circuits share"
    if isinstance(problem.exponent, Tensor):
        return "an exponent that is a tensor, only the number 2"
    if problem.exponent != 2.0:
        return f"the exponent {problem.exponent:g}, only 2"
    if drive.dtype != torch.float32:
        return f"{drive.dtype}, only float32"
    if largest_size is not None and drive.shape[-1] > largest_size:
        return f"{drive.shape[-1]} neurons, only up to {largest_size}"
    if drive.numel() == 0:
        return "an empty batch"
    return None


def ask_again(found: FoundT, unsettled: Tensor, again: Callable[[Tensor], FoundT]) -> None:
    """Put into ``found`` what ``again`` says of the circuits that the mask ``(B,)`` chooses."""
    # The host waits for a device here.
    left = unsettled.cpu().nonzero().squeeze(-1)
    if left.numel():
        left = left.to(unsettled.device)
        for part, new in zip(found, again(left), strict=True):
            part[left] = new


def adjoint_by(
    kernel: Callable[[], Adjoint],
    torch_search: TorchSearch,
    problem: Problem,
    y: Tensor,
    a: Tensor,
    status: Tensor,
    g_y: Tensor | None,
    g_a: Tensor | None,
) -> Adjoint:
    """:meth:`.base.Search.adjoint` by a kernel; by torch where it cannot, or for what it fails."""
    grads = (g_y, g_a)
    if torch.is_grad_enabled() or any(part is not None and is_transformed(part) for part in grads):
        return torch_search.adjoint(problem, y, a, status, g_y, g_a)
    adjoint = kernel()

    def again(left: Tensor) -> Adjoint:
        own_y, own_a = (None if part is None else part[left] for part in grads)
        return torch_search.adjoint(
            problem.select(left), y[left], a[left], status[left], own_y, own_a
        )

    ask_again(adjoint, adjoint.failed, again)
    return adjoint
