"""Memory for large results: huge pages, which cost a fraction of the page faults of small ones."""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["empty"]

_HUGE, _ADVICE = 1 << 21, 14
# Smaller tensors come from memory that is in use already.
_SMALLEST = 1 << 22


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """``like.new_empty(shape)``, where Linux is advised to use huge pages for it."""
    tensor = like.new_empty(tuple(shape))
    size = tensor.numel() * tensor.element_size()
    if size >= _SMALLEST and tensor.device.type == "cpu" and (advise := _madvise()) is not None:
        start = -(-tensor.data_ptr() // _HUGE) * _HUGE
        # An advice only: where it is not taken, nothing is lost.
        advise(start, tensor.data_ptr() + size - start, _ADVICE)
    return tensor


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
