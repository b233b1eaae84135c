"""Trains ORGaNICs, or a baseline, on MNIST images that are shown to them as constant inputs.

An autoencoder reduces an image to a code of 40 numbers, one or two ORGaNICs layers settle on it,
and a linear read-out of their firing rates names the digit. The stability of the trained circuits
is checked on validation images after every epoch, and in the end on all test images.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator

from mnist.data import MNIST, load_mnist
from mnist.experiment import evaluate, prepare, train_and_test
from mnist.options import CommonOptions, parse_options
from mnist.static_model import FEW_IMAGES_RECIPE, FULL_MNIST_RECIPE, Classifier, ModelName
from mnist.static_task import EXAMPLE, SHIPPED_WEIGHTS, StaticTask, build
from mnist.training import Run
from program.errors import run_example
from program.options import argument

FEW_IMAGES = 10_000


@dataclass
class Options(CommonOptions):
    """The command line."""

    model: Annotated[ModelName | None, argument("80:80|50:50|two-layer|mlp-50", "80:80")] = None
    """Neurons of each type in the ORGaNICs layer (two-layer: 120, then 60), or 50 ReLUs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains or evaluates, as the command line says."""
    options = parse_options(Options, arguments, __doc__)
    data, accelerator = prepare(options, lambda: load_mnist(options.data))
    if options.evaluate is None:
        _train(options, data, accelerator)
    elif accelerator.is_main_process:
        evaluate(EXAMPLE, options.evaluate, SHIPPED_WEIGHTS, build, data)
    accelerator.end_training()


def _train(options: Options, data: MNIST, accelerator: Accelerator) -> None:
    """Trains the model that the options name."""
    name: ModelName = options.model or "80:80"
    recipe = FULL_MNIST_RECIPE if len(data.train) > FEW_IMAGES else FEW_IMAGES_RECIPE
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    default_folder = Path("runs", EXAMPLE, f"{name.replace(':', '-')}-seed{options.seed}")
    run = Run(options.out or default_folder, options.seed, options.resume, {"model": name})
    torch.manual_seed(options.seed)
    model = Classifier(name, recipe)
    train_and_test(EXAMPLE, model, StaticTask(recipe), data, recipe, run, accelerator)


if __name__ == "__main__":
    sys.exit(run_example(main))
