"""Frequencies: hertz outside, cycles per millisecond where time constants are in milliseconds."""

from typing import TypeVar

from torch import Tensor

__all__ = ["hertz", "per_millisecond"]

Number = TypeVar("Number", Tensor, float)


def per_millisecond(frequency: Number) -> Number:
    """Hertz as cycles per millisecond."""
    return frequency / 1000.0


def hertz(frequency: Number) -> Number:
    """Cycles per millisecond as hertz."""
    return frequency * 1000.0
