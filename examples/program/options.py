"""The options of a program: how the help shows them, and which are refused."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import tyro

from program.errors import ExampleError


def argument(values: str, otherwise: str) -> Any:
    """Shows an option's values, and what holds without it, in the help."""
    return tyro.conf.arg(metavar=values, help_behavior_hint=f"(default: {otherwise})")


def check_range(options: object, bounds: Mapping[str, tuple[int, int | None]]) -> None:
    """Refuses options that are given and below their least or above their largest value."""
    for name, (least, largest) in bounds.items():
        value = getattr(options, name)
        if value is not None and (value < least or (largest is not None and value > largest)):
            expected = f"{least} at least" if largest is None else f"{least} to {largest}"
            raise ExampleError(f"{_flag(name)} is {value}; expected {expected}")


def refuse_given(options: Any, names: Collection[str], beside: str) -> None:
    """Refuses options that are given though they have no meaning beside another."""
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise ExampleError(f"{_flag(field.name)} has no meaning with {beside}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
