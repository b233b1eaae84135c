"""Trains ORGaNICs, or a baseline, on MNIST images that are shown to them as constant inputs.

An autoencoder reduces an image to a code of 40 numbers, one or two ORGaNICs layers settle on it,
and a linear read-out of their firing rates names the digit. The stability of the trained circuits
is checked on validation images after every epoch, and in the end on all test images.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from _errors import ExampleError, run_example
from _experiment import evaluate, prepare, train_and_test
from _mnist import MNIST, Images, load_mnist
from _options import CommonOptions, argument, parse_options
from _plots import History, plot_eigenvalue_curve, plot_eigenvalue_histograms
from _stability import (
    LayerStability,
    check_layers,
    converged_fraction,
    largest_real_part,
    stable_fraction,
)
from _training import Recipe, Run, in_batches
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


@dataclass
class Options(CommonOptions):
    """The command line."""

    model: Annotated[ModelName | None, argument("80:80|50:50|two-layer|mlp-50", "80:80")] = None
    """Neurons of each type in the ORGaNICs layer (two-layer: 120, then 60), or 50 ReLUs."""


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
class LayersFindings:
    """The stability of the layers' circuits; there is none in a model without circuits."""

    layers: Sequence[LayerStability]

    def metrics(self) -> dict[str, Any]:
        """What metrics.json says about stability; None stands for a model without circuits."""
        return {
            "max_real_eigenvalue": largest_real_part(self.layers),
            "stable_fraction": stable_fraction(self.layers),
            "converged_fraction": converged_fraction(self.layers),
            "layers": [
                {
                    "max_real_eigenvalue": layer.largest,
                    "stable_fraction": float(layer.stable.double().mean()),
                    "converged_fraction": float(layer.converged.double().mean()),
                }
                for layer in self.layers
            ],
        }

    def plot(self, history: History, folder: Path) -> None:
        """Draws the eigenvalues over the epochs, and those of the test images."""
        if self.layers:
            plot_eigenvalue_curve(history, "max_real_eigenvalue", folder / "max_eigenvalue.png")
            leading = [layer.leading for layer in self.layers]
            plot_eigenvalue_histograms(leading, folder / "eigenvalues.png")

    def __str__(self) -> str:
        lines = []
        for number, layer in enumerate(self.layers, 1):
            total, stable = len(layer.stable), int(layer.stable.sum())
            unsettled = total - int(layer.converged.sum())
            largest = "unknown" if layer.largest is None else f"{layer.largest:+.6f}"
            lines.append(
                f"layer {number}: {stable:,} of {total:,} test inputs stable, largest real part of "
                f"an eigenvalue {largest}/tau; {unsettled:,} without a steady state"
            )
        return "\n".join(lines)


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

    def examine(self, model: Classifier, test: Images) -> LayersFindings:
        """The stability of all test images' circuits."""
        return LayersFindings(_check(model, in_batches(test), progress=True))


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


def build(metadata: Mapping[str, Any], path: Path) -> tuple[Classifier, StaticTask]:
    """The model that weights are of."""
    name = metadata.get("model")
    if name not in LAYER_SIZES:
        raise ExampleError(
            f"--evaluate {path} is of model {name!r}; expected one of {', '.join(LAYER_SIZES)}"
        )
    return Classifier(name), StaticTask(FULL_MNIST_RECIPE)


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


if __name__ == "__main__":
    sys.exit(run_example(main))
