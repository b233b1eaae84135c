"""The pictures of a run, as PNG files; drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE)

History = Sequence[Mapping[str, float | None]]


def plot_learning_curves(history: History, path: Path) -> None:
    """Draws the training loss and the validation accuracy over the epochs."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*_series(history, "loss"), color=BLUE)
    left.set(xlabel="epoch", ylabel="training loss")
    epochs, accuracies = _series(history, "validation_accuracy")
    right.plot(epochs, [100 * value for value in accuracies], color=VERMILION)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    _save(figure, path)


def plot_eigenvalue_curve(history: History, key: str, path: Path) -> None:
    """Draws the largest real part of all eigenvalues over the epochs (the paper's Fig. 6)."""
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_series(history, key), color=BLUE, marker=".")
    axes.axhline(0, color="black", linestyle="--", linewidth=1, label="stability limit")
    axes.set(
        xlabel="epoch",
        ylabel="largest real part (1/τ)",
        title="eigenvalues on validation images",
    )
    axes.legend()
    _save(figure, path)


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
    _save(figure, path)


def _series(history: History, key: str) -> tuple[list[float], list[float]]:
    """The epochs and values of what was observed under a name, without gaps."""
    points = [(entry["epoch"], entry[key]) for entry in history]
    known = [(epoch, value) for epoch, value in points if epoch is not None and value is not None]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
