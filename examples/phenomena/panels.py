"""The picture of the phenomena that divisive normalization explains, one panel each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phenomena.measurements import Curve, Phenomenon
from program.pictures import BLUE, COLOURS, VERMILION, save

RESPONSE = "response y⁺"
CONTRAST_TICKS = (1, 3, 10, 30, 100)
ORIENTATION_TICKS = (-90, -45, 0, 45, 90)
NOTE = (
    "Dots: steady states of ORGaNICs circuits. Lines: the normalization equation (G, Wr ≠ I: "
    "through the dots; H: trajectories). y⁺ = 1 is the largest response to a full field."
)


@dataclass(frozen=True)
class Panel:
    """How a phenomenon is drawn.

    Attributes:
        title: above the panel.
        x: what changes, with its unit.
        legend: the legend's title.
        room: the end of the responses' axis as a multiple of the largest, for the legend.
        ticks: of what changes; None leaves them to matplotlib.
        contrast: whether a contrast changes: in percent, on a logarithmic axis.
        styles: colour and line of each curve.
        y: the response, with its unit.
        limit: where the panel ends; None is where the curves do.
        dots: whether to draw the values themselves, and not a line through them only.
    """

    title: str
    x: str
    legend: str
    room: float
    ticks: Sequence[int] | None = None
    contrast: bool = False
    styles: Sequence[tuple[str, str]] = tuple((colour, "-") for colour in COLOURS)
    y: str = RESPONSE
    limit: float | None = None
    dots: bool = True


_PAIRS = ((BLUE, "-"), (BLUE, "--"), (VERMILION, "-"), (VERMILION, "--"))

PANELS = {
    "contrast response": Panel(
        "Contrast response", "contrast (%)", "orientation", 1.05, CONTRAST_TICKS, True
    ),
    "orientation tuning": Panel(
        "Orientation tuning", "orientation (°)", "contrast", 1.05, ORIENTATION_TICKS
    ),
    "cross-orientation suppression": Panel(
        "Orthogonal mask", "contrast of the mask (%)", "test", 1.5, CONTRAST_TICKS, True
    ),
    "shift by a mask": Panel(
        "A mask shifts the curve", "contrast of the test (%)", "mask", 1.05, CONTRAST_TICKS, True
    ),
    "surround suppression": Panel(
        "Surround suppression", "radius (°)", "contrast", 1.05, y=f"{RESPONSE} / largest"
    ),
    "attentional gain": Panel(
        "Attentional gain",
        "contrast (%)",
        "attended (solid), not (dashed)",
        1.35,
        CONTRAST_TICKS,
        True,
        _PAIRS,
        f"{RESPONSE} / unattended $R_{{max}}$",
    ),
    "recurrent weights": Panel(
        "Recurrent weights",
        "orientation (°)",
        "contrast 100 % (solid), 50 % (dashed)",
        1.35,
        ORIENTATION_TICKS,
        styles=_PAIRS,
    ),
    "onset": Panel("Onset", "time (ms)", "contrast", 1.05, limit=120, dots=False),
}


def plot_phenomena(phenomena: Sequence[Phenomenon], semisaturation: float, path: Path) -> None:
    """Draws one panel for each phenomenon: steady states as dots, Eq. 2 as lines.

    Args:
        phenomena: what was measured, of the names in `PANELS`.
        semisaturation: the contrast `sigma`, marked where contrast responses are drawn.
        path: the PNG file.
    """
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    figure.supxlabel(NOTE, fontsize=10)
    for letter, axes, phenomenon in zip(
        "ABCDEFGH", figure.subplots(2, 4).flat, phenomena, strict=True
    ):
        panel = PANELS[phenomenon.name]
        # A panel of two curves leaves the other styles.
        for curve, (colour, line) in zip(phenomenon.curves, panel.styles, strict=False):
            _draw(axes, curve, panel, colour, line)
        _set_axes(axes, panel)
        axes.set_ylim(0, panel.room * max(float(curve.y.max()) for curve in phenomenon.curves))
        axes.set_title(panel.title, fontsize=13)
        axes.set_title(letter, loc="left", fontsize=16, fontweight="bold")
        if phenomenon.name == "contrast response":
            _mark(axes, 100 * semisaturation)
    save(figure, path)


def _draw(axes: Axes, curve: Curve, panel: Panel, colour: str, line: str) -> None:
    """Draws a curve as dots, on a line that is Eq. 2 where it holds."""
    unit = 100 if panel.contrast else 1
    x, y = curve.x, curve.y
    if curve.fine_x is not None and curve.fine_y is not None:
        x, y = curve.fine_x, curve.fine_y
    axes.plot(x * unit, y, color=colour, linestyle=line, label=curve.label or None)
    if panel.dots:
        axes.plot(curve.x * unit, curve.y, ".", color=colour)


def _set_axes(axes: Axes, panel: Panel) -> None:
    """Sets labels, ticks and legend."""
    axes.set(xlabel=panel.x, ylabel=panel.y)
    if panel.contrast:
        axes.set_xscale("log")
        axes.minorticks_off()
    if panel.ticks is not None:
        axes.set_xticks(panel.ticks, [str(tick) for tick in panel.ticks])
    if panel.limit is not None:
        axes.set_xlim(0, panel.limit)
    axes.legend(title=panel.legend, frameon=False, fontsize=9, title_fontsize=9)


def _mark(axes: Axes, c50: float) -> None:
    """Marks half of the largest response."""
    axes.plot([c50, c50, 1], [0, 0.5, 0.5], color="black", linestyle=":", linewidth=1)
    label = f"half of $R_{{max}}$ at\n$c_{{50}}$ = {c50:.3g} %"
    axes.annotate(label, (1, 0.5), (2, -4), textcoords="offset points", va="top", fontsize=9)
