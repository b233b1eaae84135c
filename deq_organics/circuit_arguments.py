"""What a circuit's arguments and states have to be."""

import math
from typing import Any

import torch
from torch import Tensor

from .checks import (
    as_float_tensor,
    check_bool,
    check_broadcast,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
    joint_shape,
    physical,
)
from .problem import CORE_DIMENSIONS, Problem

__all__ = [
    "at_least_single",
    "check_exponents",
    "check_state",
    "check_values",
    "checked_exponent",
    "checked_gains",
    "checked_shapes",
    "checked_start",
    "inhibitory_drive_of",
]


SMALLEST_EXPONENT, LARGEST_EXPONENT = 1.0, 64.0


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
    for name in ("inhibitory_drive", "tau_y", "tau_a"):
        tensors[name] = _vector(name, getattr(given, name), drive)
    if isinstance(given.exponent, Tensor):
        tensors["exponent"] = _vector("exponent", given.exponent, drive)
    else:
        tensors["exponent"] = checked_exponent(given.exponent)
    batches = {
        name: tensor.shape[: -CORE_DIMENSIONS[name]]
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }
    try:
        joint_shape(*batches.values())
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(
            f"leading dimensions: got {found}, expected shapes that broadcast together"
        ) from None
    return given._replace(
        **tensors,
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
    if isinstance(problem.exponent, Tensor):
        check_exponents(problem.exponent)


def checked_exponent(value: Any) -> float:
    """A number that an exponent can be."""
    return check_number("exponent", value, low=SMALLEST_EXPONENT, high=LARGEST_EXPONENT)


def check_exponents(exponent: Tensor) -> None:
    """Raise ValueError where a tensor holds a number that an exponent cannot be."""
    check_finite("exponent", exponent)
    if exponent.is_meta or torch.compiler.is_compiling() or exponent.numel() == 0:
        return
    low, high = (float(end) for end in torch.aminmax(physical(exponent)))
    if low < SMALLEST_EXPONENT or high > LARGEST_EXPONENT:
        raise ValueError(
            f"exponent: got values from {low:g} to {high:g}, expected numbers in "
            f"[{SMALLEST_EXPONENT:g}, {LARGEST_EXPONENT:g}]"
        )


def checked_gains(z: Tensor, gains: dict[str, Any]) -> list[Any]:
    """``z``, gains, ``semisaturation`` and ``exponent``, in single precision at least.

    They are numbers, or tensors that broadcast with ``z``; all but ``input_gain`` are positive.
    Raises where one is not.
    """
    as_float_tensor("z", z)
    if z.ndim == 0:
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected (..., n) with n >= 1")
    check_finite("z", z)
    for name, value in gains.items():
        if name == "exponent" and not isinstance(value, Tensor):
            checked_exponent(value)
            continue
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
        elif name == "exponent":
            check_exponents(value)
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
    baseline_gain: Tensor | float, semisaturation: Tensor | float, exponent: Tensor | float
) -> Tensor | float:
    """``(b0 sigma)^m``."""
    try:
        return (baseline_gain * semisaturation) ** exponent
    except OverflowError:
        raise ValueError(
            f"semisaturation: got {semisaturation!r}, expected one for which "
            "(baseline_gain * semisaturation) ** exponent is a finite number"
        ) from None


def checked_start(
    drive: Tensor,
    batch_shape: torch.Size,
    start: str | tuple[Tensor, Tensor],
    rest: Tensor,
    solver: str,
) -> tuple[Tensor, Tensor]:
    """The state ``(y, a)`` that the argument ``start`` names, without a gradient.

    ``rest`` is ``a`` of the circuits without input.
    """
    if solver != "auto":
        raise ValueError(f"start: got one with solver={solver!r}, expected solver='auto'")
    if isinstance(start, str):
        check_choice("start", start, ("rest",))
        return torch.zeros_like(drive), rest.detach()
    if not (isinstance(start, tuple | list) and len(start) == 2):
        raise TypeError(f"start: got {type(start).__name__}, expected 'rest' or (y, a)")
    y, a = start
    check_state(drive, batch_shape, {"start[0]": y, "start[1]": a})
    check_finite("start[0]", y)
    check_positive("start[1]", a)
    try:
        torch.broadcast_shapes(y.shape, a.shape, (*batch_shape, drive.shape[-1]))
    except RuntimeError:
        raise ValueError(
            f"start: got shapes {tuple(y.shape)} and {tuple(a.shape)}, expected leading "
            f"dimensions that broadcast together with {tuple(batch_shape)}"
        ) from None
    return y.detach(), a.detach()


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
