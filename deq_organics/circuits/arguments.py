"""Checks of the parameters of a circuit, and what circuits made of tensors share."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    as_float_tensor,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
)

__all__ = ["TensorFields", "finite", "matrix", "positive", "vector"]


class TensorFields:
    """A dataclass of tensors and numbers, which may be taken to another dtype or device."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The same circuits on another device or in another dtype, as :meth:`torch.Tensor.to`."""
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value.to(*args, **kwargs)
        return replace(self, **changed)  # type: ignore[type-var]


def vector(name: str, value: Any, *, like: Tensor | None = None, size: int | None = None) -> Tensor:
    """``value``, a finite tensor ``(..., n)``, of the dtype and device of ``like``."""
    tensor = as_float_tensor(name, value)
    if tensor.ndim == 0 or tensor.shape[-1] != (tensor.shape[-1] if size is None else size):
        wanted = "n" if size is None else size
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected (..., {wanted})")
    _check_alike(name, tensor, like)
    check_finite(name, tensor)
    return tensor


def matrix(name: str, value: Any, shape: Sequence[int], like: Tensor, low: bool = False) -> Tensor:
    """``value``, finite matrices ``(..., n, k)``, with ``low`` of no negative entry."""
    tensor = as_float_tensor(name, value)
    if tuple(tensor.shape[-2:]) != tuple(shape):
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected (..., {shape[0]}, {shape[1]})"
        )
    _check_alike(name, tensor, like)
    if low:
        check_positive(name, tensor, allow_zero=True)
    else:
        check_finite(name, tensor)
    return tensor


def finite(name: str, value: Any, size: int, like: Tensor) -> None:
    """Raise unless ``value`` is a finite number, or a tensor ``(..., n)`` or of no dimension."""
    if not isinstance(value, Tensor):
        check_number(name, value)
        return
    _check_last(name, value, size)
    _check_alike(name, as_float_tensor(name, value), like)
    check_finite(name, value)


def positive(name: str, value: Any, size: int, like: Tensor, *, allow_zero: bool = False) -> None:
    """Raise unless ``value`` is a positive number, or a tensor ``(..., n)`` or of no dimension."""
    if not isinstance(value, Tensor):
        check_number(name, value, low=0.0, open_low=not allow_zero)
        return
    _check_last(name, value, size)
    _check_alike(name, as_float_tensor(name, value), like)
    check_positive(name, value, allow_zero=allow_zero)


def _check_last(name: str, value: Tensor, size: int) -> None:
    if value.ndim and value.shape[-1] not in (1, size):
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected a number or (..., {size})"
        )


def _check_alike(name: str, tensor: Tensor, like: Tensor | None) -> None:
    if like is None:
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: got {tensor.dtype}, expected torch.float32 or torch.float64")
        return
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name}: got {tensor.dtype}, expected {like.dtype} as the other tensors")
    check_same_device("the other tensors", like, name, tensor)
