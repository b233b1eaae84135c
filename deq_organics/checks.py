"""Checks of arguments. Each error names the argument, what came and what was expected."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .native.values import smallest_if_finite

__all__ = [
    "as_float_tensor",
    "check_all_finite",
    "check_bool",
    "check_broadcast",
    "check_choice",
    "check_finite",
    "check_number",
    "check_positive",
    "check_positive_int",
    "check_same_device",
    "is_transformed",
    "joint_shape",
    "physical",
    "refuse_export",
    "refuse_transforms",
]


def physical(tensor: Tensor) -> Tensor:
    """The plain tensor below any ``torch.func`` transform, for checks that read values."""
    return torch.func.debug_unwrap(tensor).detach()


def is_transformed(tensor: Tensor) -> bool:
    """Whether a ``torch.func`` transform wraps ``tensor``: no loop may depend on its values."""
    return torch.func.debug_unwrap(tensor) is not tensor


def refuse_transforms(tensors: Iterable[Tensor]) -> str | None:
    """Why code with first derivatives in reverse mode only cannot take these; None if it can."""
    # Also where none of them is transformed: torch then refuses functions with a backward alone.
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return "forward-mode derivatives"
    return None


def refuse_export() -> None:
    """Raise NotImplementedError where torch records a program that works without Python."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise NotImplementedError(
            "a steady state cannot be exported or traced: which steps lead to it depends on the "
            "values of the input; run it in Python, under torch.compile if you like"
        )


def _skips_values(tensor: Tensor) -> bool:
    return tensor.is_meta or torch.compiler.is_compiling()


def as_float_tensor(name: str, value: Any) -> Tensor:
    """``value`` as it is; the argument ``name`` must be a real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name}: got dtype {value.dtype}, expected a floating-point tensor")
    return value


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError where ``tensor`` holds NaN or infinity."""
    if _skips_values(tensor) or smallest_if_finite(physical(tensor)) is not None:
        return
    finite = torch.isfinite(physical(tensor))
    if not finite.all():
        bad = int((~finite).sum())
        raise ValueError(
            f"{name}: got {bad} NaN or infinite values of {finite.numel()}, expected finite values"
        )


def check_all_finite(tensors: Mapping[str, Tensor]) -> None:
    """Like :func:`check_finite` for each tensor by its name, but waits for the device once."""
    if any(_skips_values(tensor) for tensor in tensors.values()):
        return
    if all(smallest_if_finite(physical(tensor)) is not None for tensor in tensors.values()):
        return
    finite = [torch.isfinite(physical(tensor)).all() for tensor in tensors.values()]
    if not torch.stack(finite).all():
        for name, tensor in tensors.items():
            check_finite(name, tensor)


def check_positive(name: str, tensor: Tensor, *, allow_zero: bool = False) -> None:
    """Raise ValueError where ``tensor`` is not finite and positive (or zero, if allowed)."""
    if _skips_values(tensor):
        return
    values = physical(tensor)
    smallest = smallest_if_finite(values)
    if smallest is None:
        check_finite(name, tensor)
        if values.numel() == 0:
            return
        smallest = float(values.min())
    if smallest < 0 or (smallest == 0 and not allow_zero):
        kind = "nonnegative" if allow_zero else "positive"
        raise ValueError(f"{name}: got a smallest value of {smallest:g}, expected {kind} values")


def _plain(value: Any) -> Any:
    """A number of numpy's, also as an array without dimensions, as Python's own."""
    scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if scalar else value


def check_number(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> float:
    """``value`` as a finite float within ``[low, high]`` (``(low, high]`` if ``open_low``).

    Any real number will do, numpy's too, but no bool and no tensor, which may have a gradient.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected a number")
    try:
        number = float(plain)
    except OverflowError:
        number = math.inf
    inside = low < number <= high if open_low else low <= number <= high
    if not (math.isfinite(number) and inside):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: got {value!r}, expected a number in {bracket}{low:g}, {high:g}]")
    return number


def check_positive_int(name: str, value: Any) -> int:
    """``value`` as an int of at least 1; any integer will do, numpy's too, but no bool."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Integral):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an int")
    if plain < 1:
        raise ValueError(f"{name}: got {value}, expected an int of at least 1")
    return int(plain)


def check_bool(name: str, value: Any) -> bool:
    """``value`` if it is True or False, numpy's too."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected True or False")
    return plain


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: got {value!r}, expected one of {expected}")
    return str(value)


def joint_shape(*shapes: Sequence[int]) -> torch.Size:
    """As ``torch.broadcast_shapes``, in a fraction of its time where they hardly differ.

    Raises:
        RuntimeError: They do not broadcast together.
    """
    different = {tuple(shape) for shape in shapes}
    different.discard(())
    if len(different) > 1:
        return torch.broadcast_shapes(*different)
    return torch.Size(*different)


def check_same_device(reference_name: str, reference: Tensor, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if tensor.device != reference.device:
        raise ValueError(
            f"{name}: got device {tensor.device}, expected {reference.device} as {reference_name}"
        )


def check_broadcast(name: str, shape: Sequence[int], target: Sequence[int], expected: str) -> None:
    """Raise ValueError unless ``shape`` broadcasts to ``target``."""
    try:
        fits = tuple(joint_shape(shape, target)) == tuple(target)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: got shape {tuple(shape)}, expected {expected}")
