"""Shows the phenomena that divisive normalization explains, as steady states of ORGaNICs circuits.

Neurons tuned to orientation and position see gratings: their contrast response saturates, masks and
surrounds suppress it, attention raises it, recurrent weights sharpen it. Every circuit's stability
is checked, and its steady state is compared with the normalization equation where that holds.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from deq_organics import check_stability
from phenomena.measurements import (
    Phenomenon,
    attentional_gain,
    contrast_response,
    cross_orientation_suppression,
    masked_contrast_response,
    onset,
    orientation_tuning,
    recurrent_sharpening,
    surround_suppression,
)
from phenomena.panels import plot_phenomena
from program.errors import ExampleError, run_example
from program.options import argument

EXAMPLE = "normalization"
PICTURE = "normalization.png"


@dataclass
class Options:
    """The command line."""

    out: Annotated[Path, argument("DIR", f"runs/{EXAMPLE}")] = Path("runs", EXAMPLE)
    """The folder of the picture, which replaces an older one."""
    c50: Annotated[float, argument("PERCENT", "20")] = 20.0
    """The contrast that evokes half of the largest response (the semisaturation)."""
    attention_gain: Annotated[float, argument("GAIN", "1.4")] = 1.4
    """How much attention multiplies the input drive."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all phenomena, prints what was found, and draws it."""
    options = _parse(arguments)
    start = time.perf_counter()
    sigma = options.c50 / 100
    phenomena = [
        contrast_response(sigma),
        orientation_tuning(sigma),
        cross_orientation_suppression(sigma),
        masked_contrast_response(sigma),
        surround_suppression(sigma),
        attentional_gain(sigma, options.attention_gain),
        recurrent_sharpening(sigma),
        onset(sigma),
    ]
    for phenomenon in phenomena:
        print(phenomenon)
    print(_describe_circuits(phenomena))
    path = options.out / PICTURE
    try:
        plot_phenomena(phenomena, sigma, path)
    except OSError as error:
        raise ExampleError(f"--out: {path} cannot be written ({error})") from error
    print(f"drawn in {path}, after {time.perf_counter() - start:.1f} s")


def _parse(arguments: Sequence[str] | None) -> Options:
    """Reads the command line; refuses numbers out of range and makes the folder."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    if not 1 <= options.c50 <= 100:
        raise ExampleError(f"--c50 is {options.c50:g}; expected 1 to 100 percent")
    if not 1 < options.attention_gain <= 10:
        raise ExampleError(
            f"--attention-gain is {options.attention_gain:g}; expected more than 1, 10 at most"
        )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(f"--out {options.out} cannot be made a folder ({error})") from error
    return options


def _describe_circuits(phenomena: Sequence[Phenomenon]) -> str:
    """How far the steady states are from Eq. 2, and whether they are stable."""
    curves = [curve for phenomenon in phenomena for curve in phenomenon.curves]
    reports = [check_stability(curve.circuit, curve.state) for curve in curves]
    real = torch.cat([report.leading_eigenvalue.real.flatten() for report in reports])
    stable = sum(int(report.stable.sum()) for report in reports)
    return (
        f"circuits\n  stable: {stable} of {len(real)}, largest real part {real.max():.3g} / ms\n"
        f"  largest difference from Eq. 2 where Wr = I: {max(c.discrepancy for c in curves):.2g}"
    )


if __name__ == "__main__":
    sys.exit(run_example(main))
