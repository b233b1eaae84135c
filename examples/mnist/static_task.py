"""The loss of the classifier of constant inputs, and the stability of its circuits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mnist.data import Images
from mnist.plots import History, plot_eigenvalue_curve, plot_eigenvalue_histograms
from mnist.stability import (
    LayerStability,
    check_layers,
    converged_fraction,
    largest_real_part,
    stable_fraction,
)
from mnist.static_model import FULL_MNIST_RECIPE, LAYER_SIZES, Classifier, StaticRecipe
from mnist.training import in_batches
from program.errors import ExampleError

EXAMPLE = "static_mnist"


SHIPPED_WEIGHTS = Path(__file__).parents[1] / "weights" / EXAMPLE


MONITORED_IMAGES = 128


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
