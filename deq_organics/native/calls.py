"""Calls of C kernels: structures of addresses, packed matrices, rows spread over threads."""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .shared_library import library
from .threads import spread

__all__ = ["addresses", "call", "pack", "padded"]


def addresses(
    tensors: Mapping[str, Tensor | None], dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, int | None]:
    """Where tensors lie, by the names of a structure's fields; they have to outlive the call.

    Args:
        tensors: Plain ones (:func:`~..plain_tensors.plain`) of the type float32; None is a null
            pointer.
        dtypes: Other types, by name.

    Raises:
        ValueError: A tensor is not of its type, not contiguous or negated when it is read; nothing
            was touched then.
    """
    found: dict[str, int | None] = {}
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name, torch.float32)
        if tensor is not None and not (
            tensor.is_contiguous() and tensor.dtype == dtype and not tensor.is_neg()
        ):
            raise ValueError(
                f"{name}: got {tensor.dtype} with strides {tensor.stride()}"
                f"{', to be negated' if tensor.is_neg() else ''}, expected contiguous {dtype}"
            )
        found[name] = None if tensor is None else tensor.data_ptr()
    return found


def call(
    kernel: str, arguments: ctypes.Structure | Sequence[ctypes.Structure], rows: int, most: int
) -> None:
    """Compute ``rows`` rows by the kernel of that name, in up to ``most`` threads.

    ``arguments`` are those of every part of the rows, or one structure for each part.

    Raises:
        MemoryError: The kernel found no memory for its scratch.
    """
    function = library().function(kernel)

    def run(part: int, first: int, last: int) -> int:
        own = arguments if isinstance(arguments, ctypes.Structure) else arguments[part]
        return function(ctypes.byref(own), ctypes.c_int64(first), ctypes.c_int64(last))

    spread(run, rows, most)


def padded(columns: int) -> int:
    """Columns of whole panels."""
    return columns + -columns % library().panel


def pack(matrices: Tensor) -> Tensor:
    """Matrices ``(..., depth, columns)`` in panels, as organics.h describes them."""
    *lead, depth, columns = matrices.shape
    whole = torch.nn.functional.pad(matrices, (0, padded(columns) - columns))
    panels = whole.view(*lead, depth, -1, library().panel)
    return panels.transpose(-3, -2).contiguous()
