"""The picture of the phenomena that divisive normalization explains, one panel each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _phenomena import Curve, Phenomenon
from _plots import BLUE, COLOURS, VERMILION, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESPONSE = "response y⁺"
CONTRAST_TICKS = (1, 3, 10, 30, 100)


@dataclass(frozen=True)
class Panel:
    """How a phenomenon is drawn.

    Attributes:
        title: above the panel.
        x: what changes, with its unit.
        legend: the legend's title.
        contrast: whether a contrast changes: in percent, on a logarithmic axis.
        styles: colour and line of each curve.
        y: the response, with its unit.
    """

    title: str
    x: str
    legend: str
    contrast: bool = False
    styles: Sequence[tuple[str, str]] = tuple((colour, "-") for colour in COLOURS)
    y: str = RESPONSE


_PAIRS = ((BLUE, "-"), (BLUE, "--"), (VERMILION, "-"), (VERMILION, "--"))

PANELS = {
    "contrast response": Panel("Contrast response", "contrast (%)", "orientation", True),
    "orientation tuning": Panel("Orientation tuning", "orientation (°)", "contrast"),
    "cross-orientation suppression": Panel(
        "Cross-orientation suppression", "contrast of the mask (%)", "test", True
    ),
    "shift by a mask": Panel("A mask shifts the curve", "contrast of the test (%)", "mask", True),
    "surround suppression": Panel("Surround suppression", "radius (°)", "contrast"),
    "attentional gain": Panel(
        "Attentional gain",
        "contrast (%)",
        "",
        True,
        _PAIRS,
        f"{RESPONSE} / unattended $R_{{max}}$",
    ),
    "recurrent weights": Panel(
        "Recurrent weights sharpen", "orientation (°)", "broad drive", styles=_PAIRS
    ),
    "onset": Panel("Onset", "time (ms)", "contrast"),
}


def plot_phenomena(phenomena: Sequence[Phenomenon], semisaturation: float, path: Path) -> None:
    """Draws one panel for each phenomenon: steady states as dots, Eq. 2 as lines.

    Args:
        phenomena: what was measured, of the names in `PANELS`.
        semisaturation: the contrast `sigma`, marked where contrast responses are drawn.
        path: the PNG file.
    """
    figure = Figure(figsize=(16, 8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.12)
    for letter, axes, phenomenon in zip(
        "ABCDEFGH", figure.subplots(2, 4).flat, phenomena, strict=True
    ):
        panel = PANELS[phenomenon.name]
        for curve, (colour, line) in zip(phenomenon.curves, panel.styles, strict=False):
            _draw(axes, curve, 100 if panel.contrast else 1, colour, line)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.set_ylim(bottom=0)
        axes.set_title(panel.title, fontsize=13)
        axes.set_title(letter, loc="left", fontsize=16, fontweight="bold")
        axes.legend(title=panel.legend, frameon=False, fontsize=9, title_fontsize=9)
        if panel.contrast:
            axes.set_xscale("log")
            axes.set_xticks(CONTRAST_TICKS, [str(tick) for tick in CONTRAST_TICKS])
            axes.minorticks_off()
        if phenomenon.name == "contrast response":
            _mark(axes, 100 * semisaturation)
    save(figure, path)


def _draw(axes: Axes, curve: Curve, unit: float, colour: str, line: str) -> None:
    """Draws the steady states as dots and Eq. 2 as a line; without it a line through the dots."""
    x = curve.x * unit
    if curve.fine_x is None:
        axes.plot(x, curve.y, color=colour, linestyle=line, label=curve.label)
    else:
        axes.plot(curve.fine_x * unit, curve.fine_y, color=colour, linestyle=line)
        axes.plot(x, curve.y, ".", color=colour, label=curve.label)


def _mark(axes: Axes, c50: float) -> None:
    """Marks half of the largest response."""
    axes.plot([c50, c50, 1], [0, 0.5, 0.5], color="black", linestyle=":", linewidth=1)
    axes.annotate("$c_{50}$", (c50, 0), (4, 4), textcoords="offset points")
