"""The loss of the classifier of pixel sequences, and the states of its circuits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist.data import CLASSES, Images
from mnist.plots import History, plot_gradient_norms, plot_time_constants, plot_trajectories
from mnist.sequence_model import Architecture, Classifier, SequenceRecipe
from mnist.training import in_batches
from mnist.trajectories import TrajectoryFindings, find_bounds, finite_or_none, follow
from program.errors import ExampleError
from recurrent import State

EXAMPLE = "smnist_bptt"


SHIPPED_WEIGHTS = Path(__file__).parents[1] / "weights" / EXAMPLE


MONITORED_IMAGES = 200


DRAWN_IMAGES = 5


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
    """What the fields of a dataclass are among other values; those that may be missing, may."""
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING or field.name in values
    }
