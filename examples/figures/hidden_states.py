"""What the neurons of the shipped sequence models do along test images (the paper's Fig. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from mnist.data import MNIST, Images
from mnist.experiment import load_model
from mnist.sequence_model import Classifier
from mnist.sequence_task import EXAMPLE, SHIPPED_WEIGHTS, build
from mnist.training import in_batches
from mnist.trajectories import Bounds, find_bounds
from program.errors import ExampleError
from program.pictures import letter_panels
from recurrent import State

IMAGES = 3
COLOURS = colormaps["viridis"]
PAPER_STEPS, PAPER_UNITS = 784, 128


@dataclass(frozen=True)
class SequenceModel:
    """A shipped model of circuits.

    Attributes:
        name: of its file.
        classifier: the model.
        permuted: whether it sees the pixels in a random order.
    """

    name: str
    classifier: Classifier
    permuted: bool

    @property
    def time_constants(self) -> Tensor:
        """tau_y of each unit in steps, `(n,)`."""
        assert self.classifier.cell is not None
        return 1 / self.classifier.cell.step_y.detach()

    @torch.no_grad()
    def bounds(self, images: Images) -> Bounds:
        """How large the states get along images."""
        model = self.classifier
        assert model.cell is not None
        batches = (model.sequences(part.images) for part in in_batches(images))
        return find_bounds(model.cell, State(*model.first_state), batches)

    def __str__(self) -> str:
        order = "permuted" if self.permuted else "unpermuted"
        return f"{order}: {len(self.time_constants)} units, {self.classifier.side**2} steps"


def load_sequence_models(folder: Path = SHIPPED_WEIGHTS) -> list[SequenceModel]:
    """The shipped models that consist of circuits, unpermuted ones first."""
    models = []
    for path in sorted(folder.glob("*.safetensors")):
        model, _, metadata = load_model(EXAMPLE, path, build)
        if model.cell is not None:
            models.append(SequenceModel(path.stem, model, metadata["permuted"]))
    if not models:
        raise ExampleError(
            f"{folder} holds no weights of circuits; expected those that are shipped"
        )
    return sorted(models, key=lambda model: model.permuted)


def draw_hidden_states(data: MNIST, seed: int) -> tuple[Figure, str]:
    """Draws Fig. 7, a column a model; returns it, and the bounds of the states in words."""
    models = load_sequence_models()
    generator = torch.Generator().manual_seed(seed)
    shown = data.test[torch.randperm(len(data.test), generator=generator)[:IMAGES]]
    figure = Figure(figsize=(2.0 + 5.0 * len(models), 6.5), layout="constrained")
    panels = figure.subplots(IMAGES, len(models), sharex="col", sharey="col", squeeze=False)
    scale = LogNorm(
        min(float(model.time_constants.min()) for model in models),
        max(float(model.time_constants.max()) for model in models),
    )
    findings = []
    for column, model in zip(panels.T, models, strict=True):
        _draw_column(column, model, shown, scale)
        bounds = model.bounds(data.test)
        findings.append(
            f"{model} ({model.name}): states bounded along {int(bounds.bounded.sum()):,} of "
            f"{len(data.test):,} test images, |y| at most {float(bounds.largest.y):.2f}"
        )
    letter_panels(panels[0])
    figure.colorbar(
        ScalarMappable(scale, COLOURS), ax=panels, label="time constant $τ_y$ (steps)", aspect=40
    )
    figure.supylabel("membrane potential y of every unit", fontsize="medium")
    findings.append(f"the paper has {PAPER_UNITS} units and {PAPER_STEPS} steps")
    for permuted, letter in ((False, "unpermuted"), (True, "permuted")):
        if all(model.permuted != permuted for model in models):
            findings.append(f"no {letter} weights are shipped: their panel is missing")
    return figure, "\n".join(findings)


@torch.no_grad()
def _draw_column(
    column: Sequence[Axes], model: SequenceModel, shown: Images, scale: LogNorm
) -> None:
    """Draws what the units of a model do along some images, a panel an image."""
    states = model.classifier.outputs(shown.images)
    colours = COLOURS(scale(model.time_constants.numpy()))
    for axes, trajectories, image in zip(column, states.unbind(1), shown.images, strict=True):
        steps = range(1, len(trajectories) + 1)
        for unit, colour in zip(trajectories.T, colours, strict=True):
            axes.plot(steps, unit.numpy(), color=colour, linewidth=0.7)
        axes.axhline(0, color="black", linewidth=0.5)
        picture = axes.inset_axes((0.99, 0.6, 0.12, 0.4))
        picture.imshow(image.numpy(), cmap="gray_r")
        picture.set_axis_off()
    column[0].set_title(f"{model} ({PAPER_UNITS} and {PAPER_STEPS} in the paper)")
    column[-1].set_xlabel("step")
