"""Tensors as kernels read them, by nothing but an address and sizes."""

from torch import Tensor

__all__ = ["plain"]


def plain(tensor: Tensor) -> Tensor:
    """The same values in one contiguous piece of memory, without marks such as a pending minus.

    A view like ``z.conj().imag`` holds the negatives of its values, and torch negates them when it
    reads. ``contiguous()`` alone leaves that mark on a tensor that is contiguous already.
    """
    return tensor.contiguous().resolve_neg()
