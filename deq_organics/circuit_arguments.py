"""What a circuit's arguments and states have to be."""

import math
from typing import Any

import torch
from torch import Tensor

from .checks import (
    as_float_tensor,
    check_bool,
    check_broadcast,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
    joint_shape,
)
from .problem import CORE_DIMENSIONS, Problem

__all__ = [
    "at_least_single",
    "check_state",
    "check_values",
    "checked_gains",
    "checked_shapes",
    "inhibitory_drive_of",
]


def checked_shapes(given: Problem) -> Problem:
    """A user's arguments as tensors of one dtype and device whose shapes go together.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype or device does not fit; the message names the argument.
    """
    drive = at_least_single(as_float_tensor("input_drive", given.input_drive))
    if drive.ndim == 0 or drive.shape[-1] == 0:
        raise ValueError(
            f"input_drive: got shape {tuple(drive.shape)}, expected (..., n) with n >= 1"
        )
    tensors: dict[str, Any] = {"input_drive": drive}
    # Matrices first: their shapes say the most about what was meant.
    for name in ("normalization_weight", "recurrent_weight"):
        value = getattr(given, name)
        if value is not None or name != "recurrent_weight":
            tensors[name] = _matrix(name, value, drive)
    for name, core in CORE_DIMENSIONS.items():
        if core == 1 and name != "input_drive":
            tensors[name] = _vector(name, getattr(given, name), drive)
    batches = {name: tensor.shape[: -CORE_DIMENSIONS[name]] for name, tensor in tensors.items()}
    try:
        joint_shape(*batches.values())
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(
            f"leading dimensions: got {found}, expected shapes that broadcast together"
        ) from None
    return given._replace(
        **tensors,
        exponent=check_number("exponent", given.exponent, low=1.0, high=64.0),
        rectified=check_bool("rectified", given.rectified),
    )


def check_values(problem: Problem) -> None:
    """Raise ValueError for values that no circuit can have; the message names the argument."""
    check_finite("input_drive", problem.input_drive)
    check_positive("normalization_weight", problem.normalization_weight, allow_zero=True)
    if problem.recurrent_weight is not None:
        check_finite("recurrent_weight", problem.recurrent_weight)
    check_positive("inhibitory_drive", problem.inhibitory_drive)
    check_positive("tau_y", problem.tau_y)
    check_positive("tau_a", problem.tau_a)


def checked_gains(z: Tensor, gains: dict[str, Any]) -> list[Any]:
    """``z`` and gains, ``semisaturation`` among them, at least in single precision.

    Gains are numbers, or tensors that broadcast with ``z``; all but ``input_gain`` are positive.
    Raises where one is not.
    """
    as_float_tensor("z", z)
    if z.ndim == 0:
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected (..., n) with n >= 1")
    check_finite("z", z)
    for name, value in gains.items():
        if not isinstance(value, Tensor):
            signed = name == "input_gain"
            check_number(name, value, low=-math.inf if signed else 0.0, open_low=not signed)
            continue
        as_float_tensor(name, value)
        check_same_device("z", z, name, value)
        if value.dtype != z.dtype:
            raise ValueError(f"{name}: got {value.dtype}, expected {z.dtype} as z")
        check_broadcast(name, value.shape[-1:], z.shape[-1:], "a number, (n,) or (..., n)")
        if name == "input_gain":
            check_finite(name, value)
        else:
            check_positive(name, value)
    shapes = {"z": z, **{name: value for name, value in gains.items() if isinstance(value, Tensor)}}
    try:
        torch.broadcast_shapes(*(tensor.shape for tensor in shapes.values()))
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
        raise ValueError(
            f"leading dimensions: got {found}, expected shapes that broadcast together"
        ) from None
    return [
        at_least_single(value) if isinstance(value, Tensor) else value
        for value in (z, *gains.values())
    ]


def inhibitory_drive_of(
    baseline_gain: Tensor | float, semisaturation: Tensor | float, exponent: float
) -> Tensor | float:
    """``(b0 sigma)^m``."""
    try:
        return (baseline_gain * semisaturation) ** exponent
    except OverflowError:
        raise ValueError(
            f"semisaturation: got {semisaturation!r}, expected one for which "
            "(baseline_gain * semisaturation) ** exponent is a finite number"
        ) from None


def check_state(drive: Tensor, batch_shape: torch.Size, state: dict[str, Tensor]) -> None:
    """Raise where a state, ``y`` and ``a`` by the names to give them, does not fit circuits.

    These have the input ``drive`` and leading dimensions ``batch_shape``.
    """
    n = drive.shape[-1]
    for name, tensor in state.items():
        as_float_tensor(name, tensor)
        check_same_device("input_drive", drive, name, tensor)
        if tensor.ndim == 0 or tensor.shape[-1] != n:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected (..., {n})")
        if tensor.dtype != drive.dtype:
            raise ValueError(f"{name}: got {tensor.dtype}, expected {drive.dtype} as the circuit")
        try:
            torch.broadcast_shapes(tensor.shape[:-1], batch_shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected leading dimensions that "
                f"broadcast with {tuple(batch_shape)}"
            ) from None


def at_least_single(tensor: Tensor) -> Tensor:
    """In float32 where it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _like_drive(name: str, value: Tensor, drive: Tensor) -> Tensor:
    tensor = at_least_single(as_float_tensor(name, value))
    check_same_device("input_drive", drive, name, tensor)
    if tensor.dtype != drive.dtype:
        raise ValueError(f"{name}: got {tensor.dtype}, expected {drive.dtype} as input_drive")
    return tensor


def _matrix(name: str, value: Tensor, drive: Tensor) -> Tensor:
    tensor, n = _like_drive(name, value, drive), drive.shape[-1]
    if tensor.ndim < 2 or tensor.shape[-2:] != (n, n):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected (..., {n}, {n})")
    return tensor


def _vector(name: str, value: Tensor | float, drive: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = drive.new_full((), check_number(name, value, low=0.0, open_low=True))
    tensor, n = _like_drive(name, value, drive), drive.shape[-1]
    if tensor.ndim == 0:
        tensor = tensor.expand(n)
    check_broadcast(name, tensor.shape[-1:], (n,), f"a number, ({n},) or (..., {n})")
    return tensor
