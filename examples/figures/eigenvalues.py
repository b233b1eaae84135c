"""The stability of two-layer models, trained and in training (the paper's Figs. 5 and 6)."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist.data import MNIST, Images
from mnist.experiment import compare, load_model
from mnist.plots import History, series
from mnist.stability import LayerStability
from mnist.static_model import FEW_IMAGES_RECIPE, Classifier
from mnist.static_task import EXAMPLE, SHIPPED_WEIGHTS, StaticTask, build
from mnist.training import Run, accuracy, train
from program.pictures import BLUE, GREEN, VERMILION, letter_panels

MODEL: Final = "two-layer"
TAU = 2.0  # ms
TRAINING_IMAGES, WATCHED_IMAGES = 3500, 1000
EPOCHS = 20
COLOURS = (BLUE, VERMILION)


def per_ms(eigenvalue: float) -> float:
    """Converts an eigenvalue from 1/tau, which the models are in, to 1/ms."""
    return eigenvalue / TAU


def draw_histograms(data: MNIST) -> tuple[Figure, str]:
    """Draws Fig. 5 for the shipped model; returns it, and the largest real parts in words."""
    model, task, metadata = load_model(EXAMPLE, SHIPPED_WEIGHTS / f"{MODEL}.safetensors", build)
    layers = task.examine(model, data.test).layers
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = list(figure.subplots(1, len(layers)))
    for number, (axes, layer, colour) in enumerate(zip(panels, layers, COLOURS, strict=True), 1):
        known = per_ms(1) * layer.leading[layer.converged]
        axes.hist(known.tolist(), bins=30, color=colour)
        axes.axvline(0, color="black", linestyle="--", linewidth=1, label="stability limit")
        axes.set(
            xlabel="largest real part (1/ms)",
            ylabel="test inputs",
            title=f"layer {number}: {int(layer.stable.sum()):,} of {len(layer.stable):,} stable",
        )
        axes.legend(loc="upper center")
    letter_panels(panels)
    figure.suptitle(f"two-layer ORGaNICs, $τ_a$ = $τ_y$ = {TAU:g} ms")
    tested = accuracy(task, model, data.test)
    return figure, "\n".join(
        [
            *(f"({letter}) {_describe(layer)}" for letter, layer in zip("ab", layers, strict=True)),
            f"test accuracy {tested:.2%}; {compare(tested, metadata, data)}",
        ]
    )


@dataclass(frozen=True)
class WatchingTask(StaticTask):
    """The same task; all test images are looked at after every epoch, and decide nothing."""

    test: Images

    def observe(self, model: Classifier, validation: Images) -> dict[str, float | None]:
        """The accuracy on the test images, and each layer's stability over them."""
        layers = self.examine(model, self.test).layers
        return {"test_accuracy": accuracy(self, model, self.test)} | {
            f"{key}_{number}": value
            for number, layer in enumerate(layers, 1)
            for key, value in (
                ("largest", layer.largest),
                ("stable", float(layer.stable.double().mean())),
            )
        }

    def describe(self, observed: Mapping[str, float | None]) -> str:
        """The end of an epoch's line."""
        largest = [observed["largest_1"], observed["largest_2"]]
        shown = ", ".join("unknown" if value is None else f"{value:+.3f}" for value in largest)
        return f"  largest real parts {shown} /τ ({len(self.test):,} test images)"


def train_and_watch(data: MNIST, seed: int, epochs: int) -> tuple[History, MNIST]:
    """Trains a two-layer model on a few images, whose checkpoints are not kept.

    Args:
        data: images, the first of which are used.
        seed: of the training.
        epochs: passes over the training images.

    Returns:
        What was observed before the first epoch and after each, and the images that were used.
    """
    used = data.limited(min(len(data.train), TRAINING_IMAGES))
    used = dataclasses.replace(used, test=data.test[:WATCHED_IMAGES])
    recipe = dataclasses.replace(FEW_IMAGES_RECIPE, epochs=epochs)
    task = WatchingTask(recipe, used.test)
    torch.manual_seed(seed)
    model = Classifier(MODEL, recipe)
    before = {"epoch": 0, **task.observe(model.eval(), used.validation)}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), seed, resume=False, options={})
        trained = train(model, task, used, recipe, run, Accelerator(cpu=True))
    return [before, *trained.history], used


def draw_training(data: MNIST, seed: int, epochs: int) -> tuple[Figure, str]:
    """Draws Fig. 6 for a training run; returns it, and its largest real part in words."""
    history, used = train_and_watch(data, seed, epochs)
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for number, (colour, marker) in enumerate(zip(COLOURS, "o^", strict=True), 1):
        passed, largest = series(history, f"largest_{number}")
        upper.plot(
            passed,
            [per_ms(value) for value in largest],
            color=colour,
            marker=marker,
            markersize=4,
            label=f"layer {number}",
        )
    upper.axhline(0, color="black", linestyle="--", linewidth=1, label="stability limit")
    upper.set(
        ylabel="largest real part (1/ms)",
        title=f"over {len(used.test):,} test images, $τ_a$ = $τ_y$ = {TAU:g} ms",
    )
    upper.legend()
    passed, accuracies = series(history, "test_accuracy")
    lower.plot(passed, [100 * value for value in accuracies], color=GREEN, marker=".")
    lower.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100), title="on the same images")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    letter_panels([upper, lower])
    known = [value for number in (1, 2) for value in series(history, f"largest_{number}")[1]]
    stable = [value for number in (1, 2) for value in series(history, f"stable_{number}")[1]]
    return figure, (
        f"two-layer model, {len(used.train):,} training images, {epochs} epochs: test accuracy "
        f"{accuracies[-1]:.2%}; at least {min(stable):.2%} of a layer's {len(used.test):,} test "
        f"inputs stable after any epoch, largest real part of all {per_ms(max(known)):+.4f} /ms"
    )


def _describe(layer: LayerStability) -> str:
    """What a histogram shows, in words."""
    known = layer.leading[layer.converged]
    return (
        f"{int(layer.stable.sum()):,} of {len(layer.stable):,} test inputs stable, largest real "
        f"parts from {per_ms(float(known.min())):.4f} to {per_ms(float(known.max())):.4f} /ms"
    )
