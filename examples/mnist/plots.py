"""The pictures of a run, as PNG files; drawn without a display."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from program.pictures import BLUE, COLOURS, VERMILION, save

History = Sequence[Mapping[str, float | None]]


def plot_learning_curves(history: History, path: Path) -> None:
    """Draws the training loss and the validation accuracy over the epochs."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*series(history, "loss"), color=BLUE)
    left.set(xlabel="epoch", ylabel="training loss")
    epochs, accuracies = series(history, "validation_accuracy")
    right.plot(epochs, [100 * value for value in accuracies], color=VERMILION)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    save(figure, path)


def plot_eigenvalue_curve(history: History, key: str, path: Path) -> None:
    """Draws the largest real part of all eigenvalues over the epochs (the paper's Fig. 6)."""
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*series(history, key), color=BLUE, marker=".")
    axes.axhline(0, color="black", linestyle="--", linewidth=1, label="stability limit")
    axes.set(
        xlabel="epoch",
        ylabel="largest real part (1/τ)",
        title="eigenvalues on validation images",
    )
    axes.legend()
    save(figure, path)


def plot_eigenvalue_histograms(real_parts: Sequence[Tensor], path: Path) -> None:
    """Draws the leading eigenvalues of a test set (the paper's Fig. 5).

    Args:
        real_parts: for each layer the largest real part of each input's circuit, `(N,)`.
        path: the PNG file.
    """
    figure = Figure(figsize=(4.5 * len(real_parts), 3), layout="constrained")
    for number, (axes, values) in enumerate(
        zip(figure.subplots(1, len(real_parts), squeeze=False)[0], real_parts, strict=True), 1
    ):
        finite = values[torch.isfinite(values)]
        axes.hist(finite.tolist(), bins=60, color=COLOURS[(number - 1) % len(COLOURS)])
        axes.set(
            xlabel="real part of the leading eigenvalue (1/τ)",
            ylabel="test inputs",
            title=f"layer {number}" if len(real_parts) > 1 else "",
        )
    save(figure, path)


def plot_gradient_norms(history: History, path: Path) -> None:
    """Draws the mean and the largest norm of the gradient in every epoch."""
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*series(history, "gradient_norm"), color=BLUE, label="mean")
    axes.plot(*series(history, "largest_gradient_norm"), color=VERMILION, label="largest")
    axes.set(xlabel="epoch", ylabel="norm of the gradient", yscale="log")
    axes.legend()
    save(figure, path)


def plot_trajectories(outputs: Tensor, labels: Tensor, path: Path) -> None:
    """Draws what the units of a recurrent layer do while images go by (the paper's Fig. 7).

    Args:
        outputs: of the layer after every step, `(T, N, n)`.
        labels: the images' classes, `(N,)`.
        path: the PNG file.
    """
    outputs, labels = outputs.detach().double().cpu(), labels.cpu()
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    halves = figure.subfigures(1, 2, width_ratios=(1.4, 1))
    left, right = cast(Iterable[SubFigure], halves)
    panels = left.subplots(2, 2, sharex=True, sharey=True)
    for axes, digit in zip(panels.flat, labels.unique().tolist(), strict=False):
        axes.plot(outputs[:, labels.tolist().index(digit)].numpy(), linewidth=0.6)
        axes.set(title=f"a {digit}: every unit")
    left.supxlabel("step")
    left.supylabel("output")
    axes = right.subplots()
    # Of all states, not of each trajectory alone: the plane is the same for every image.
    flat = outputs.flatten(0, 1)
    mean = flat.mean(0)
    _, _, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    plane = (outputs - mean) @ directions[:2].T
    for index, label in enumerate(labels.tolist()):
        colour = colormaps["tab10"](label)
        path_in_plane = plane[:, index]
        axes.plot(*path_in_plane.T.numpy(), color=colour, linewidth=0.5, alpha=0.6)
        axes.plot(*path_in_plane[-1].numpy(), color=colour, marker=f"${label}$", markersize=7)
    axes.set(
        xlabel="first principal component",
        ylabel="second principal component",
        title="one line an image, its digit at the end",
    )
    save(figure, path)


def plot_time_constants(steps: Mapping[str, Tensor], path: Path) -> None:
    """Draws how the time constants are distributed over the neurons.

    Args:
        steps: dt/tau by the name of what it belongs to, `(n,)` each.
        path: the PNG file.
    """
    figure = Figure(figsize=(3 * len(steps), 2.8), layout="constrained")
    row = figure.subplots(1, len(steps), sharey=True)
    for axes, colour, (name, step) in zip(row, COLOURS, steps.items(), strict=True):
        axes.hist((1 / step.detach().cpu()).log10().tolist(), bins=20, color=colour)
        axes.set(xlabel="log10(τ / dt)", title=name)
    row[0].set_ylabel("neurons")
    save(figure, path)


def series(history: History, key: str) -> tuple[list[float], list[float]]:
    """The epochs and values of what was observed under a name, without gaps."""
    points = [(entry["epoch"], entry[key]) for entry in history]
    known = [(epoch, value) for epoch, value in points if epoch is not None and value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]
