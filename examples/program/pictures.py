"""The pictures of a program, as PNG files: colours, letters and files; drawn without a display."""

import io
import string
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from program.files import write_atomically

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


COLOURS = (BLUE, VERMILION, GREEN, PURPLE)


def letter_panels(panels: Sequence[Axes]) -> None:
    """Writes (a), (b), ... before the titles of panels."""
    for letter, axes in zip(string.ascii_lowercase, panels, strict=False):
        title = axes.get_title()
        axes.set_title("")
        axes.set_title(f"({letter})  {title}", loc="left", fontsize="medium")


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Writes a picture, its axes without frames, all of it or nothing."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write_atomically(path, buffer.getvalue())
