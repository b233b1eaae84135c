"""Lengths of vectors whose squares neither overflow nor underflow, whatever their unit.

A square leaves the range of a dtype long before its root does: in float32 that of 1e-23 is zero.
So a vector is first brought to the size of 1, by a power of two, which costs no digit.
"""

import torch
from torch import Tensor

__all__ = ["length", "size_of", "smallest_step"]


def size_of(*rows: Tensor) -> Tensor:
    """The power of two next to the largest magnitude in each row of tensors ``(..., n)``.

    Of shape ``(..., 1)``, without a gradient; ``x / size_of(x)`` is within (-2, 2). Rows that are
    zero, or not finite, have any size.
    """
    largest = rows[0].detach().abs().amax(-1, keepdim=True)
    for more in rows[1:]:
        largest = torch.maximum(largest, more.detach().abs().amax(-1, keepdim=True))
    return torch.exp2((torch.frexp(largest).exponent - 1).to(largest.dtype))


def length(x: Tensor) -> Tensor:
    """The Euclidean length ``(...)`` of each row of ``x`` ``(..., n)``."""
    size = size_of(x)
    return torch.linalg.vector_norm(x / size, dim=-1) * size.squeeze(-1)


def smallest_step(dtype: torch.dtype) -> float:
    """The distance of 0 from the next number: no smaller change of a value can be told."""
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps
