"""Which tiles make the Triton kernels of sequences fast, on the GPU at hand.

    python benchmarks/sequence_tiles.py --hidden-size 128

A training step is timed with every tile that fits into shared memory: blocks of all shapes, several
at a time, more or fewer warps and samples of a program. The same tile serves the forward kernel and
the adjoint's; the two columns tell which one is best for which. ``--dots`` tries other ways to make
a product of float32, with Triton's names. What is best goes into
``recurrent/backends/cuda/tiles.py``.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from harness.output import table
from harness.race import Contender, Pace, Step, gradient_step, race
from harness.report import Report
from harness.timing import clock_for
from recurrent import ORGaNICsRNN
from recurrent.backends.cuda import backward, forward
from recurrent.backends.cuda.tiles import ADJOINT_TILES, FORWARD_TILES, Precision, Tile

LARGEST_GROUP_BYTES = 2**17
# Of a block, which a thread holds twice where products are split.
MOST_ELEMENTS_OF_A_THREAD = 64


@dataclass(frozen=True)
class Options:
    hidden_size: int = 128
    steps: int = 784
    batch: int = 256
    rounds: int = 5
    dots: tuple[Literal["tf32x3", "bf16x3", "tf32", "ieee"], ...] = ("tf32x3",)
    """How a product of float32 is made of those that the device has."""
    device: Literal["cpu", "cuda"] = "cuda"
    seed: int = 0
    out: Path | None = None
    """JSON file; on a GPU benchmarks/results/sequence_tiles-NAME.json if left out."""


def candidates(padded: int) -> list[Tile]:
    """Tiles worth a try: blocks of whole columns or parts, a warp for 8, 16 or 32 neurons."""
    columns = [width for width in (padded, padded // 2, padded // 4) if width >= 16]
    warps = [count for count in (padded // 32, padded // 16, padded // 8) if 1 <= count <= 16]
    shapes = itertools.product(columns, (1, 2, 3, 6), warps, (8, 16))
    return [
        Tile(padded, padded, width, group, count, samples)
        for width, group, count, samples in shapes
        if 4 * group * padded * width <= LARGEST_GROUP_BYTES
        and padded * width <= MOST_ELEMENTS_OF_A_THREAD * 32 * count
    ]


@contextmanager
def using(tile: Tile, dot: str) -> Iterator[None]:
    """Both kernels with that tile and those products."""
    precision = Precision(torch.float32, dot)
    before = (FORWARD_TILES[tile.padded], ADJOINT_TILES[tile.padded], forward.chosen_precision)  # type: ignore[attr-defined]
    FORWARD_TILES[tile.padded] = ADJOINT_TILES[tile.padded] = tile
    forward.chosen_precision = backward.chosen_precision = lambda: precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        FORWARD_TILES[tile.padded], ADJOINT_TILES[tile.padded] = before[:2]
        forward.chosen_precision = backward.chosen_precision = before[2]  # type: ignore[attr-defined]


def main(options: Options) -> int:
    """Times all candidates; the exit status is 1 if one does not run."""
    report = Report("sequence_tiles", options)
    torch.manual_seed(options.seed)
    rnn = ORGaNICsRNN(
        1,
        options.hidden_size,
        backend="cuda",
        recurrence="unconstrained",
        device=options.device,
    )
    x = torch.rand(options.steps, options.batch, 1, device=options.device)
    weights = torch.randn(options.batch, options.hidden_size, device=options.device)

    def prepare(x: Tensor) -> Step:
        return gradient_step(lambda: rnn(x)[1].y[-1], weights, list(rnn.parameters()))

    padded = next(size for size in FORWARD_TILES if size >= options.hidden_size)
    tried = {
        f"{tile.rows} x {tile.columns}, group {tile.group}, {tile.warps} warps, "
        f"{tile.samples} samples, {dot}": (tile, dot)
        for tile, dot in itertools.product(candidates(padded), options.dots)
    }
    contenders = [
        Contender(name, prepare, mode=partial(using, tile, dot))
        for name, (tile, dot) in tried.items()
    ]
    pace = Pace(rounds=options.rounds, seconds=0.5)
    clock = clock_for(options.device)
    times = race(contenders, x, clock, pace, report.attempt, "tiles", options.seed)
    ranked = sorted(times.items(), key=lambda item: item[1].median_total)
    rows = [
        [
            name,
            f"{1e3 * each.median_forward:.2f}",
            f"{1e3 * (each.median_total - each.median_forward):.2f}",
            f"{1e3 * each.median_total:.2f}",
        ]
        for name, each in ranked
    ]
    print(f"\n{options.hidden_size} units, {options.steps} steps, batch {options.batch}: ms")
    print(table(["blocks", "forward", "backward", "both"], rows))
    report.add(
        results=[
            {"tile": asdict(tried[name][0]), "dot": tried[name][1], **each.record()}
            for name, each in ranked
        ]
    )
    return report.close()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
