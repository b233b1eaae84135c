"""A quick look at the values of a tensor: a check must cost little beside their use."""

import ctypes

import torch
from torch import Tensor

from .shared_library import library, native_refusal

__all__ = ["smallest_if_finite"]


def smallest_if_finite(values: Tensor) -> float | None:
    """The smallest of the values; None where one is not finite, or where no kernel can tell."""
    if (
        type(values) is not Tensor
        # Then a tensor may be one that only looks plain.
        or torch._C._are_functorch_transforms_active()
        or values.dtype != torch.float32
        or values.layout != torch.strided
        or native_refusal(values.device) is not None
        or not values.is_contiguous()
        or values.is_neg()
        or values.numel() == 0
    ):
        return None
    smallest = ctypes.c_float()
    finite = library().function("look")(
        ctypes.c_void_p(values.data_ptr()),
        ctypes.c_int64(values.numel()),
        ctypes.byref(smallest),
    )
    return smallest.value if finite else None
