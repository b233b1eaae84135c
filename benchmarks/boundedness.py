"""How many random cells diverge, by model, size of the recurrent weights and dt/tau.

    python benchmarks/boundedness.py --out boundedness.json

Cells are drawn by the recipe for sequences, their recurrent weights scaled to a largest singular
value, all their dt/tau set to one number, and driven for 10,000 steps with inputs in [0, 1]:
half of the cells with a new one at every step, half with a constant one. A cell diverges when a
state is not finite or exceeds 1,000 in magnitude.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from recurrent import ORGaNICsCell, State
from recurrent.dynamics import GainParameters, Model, Parameters, euler_step

LIMIT = 1e3
EVERY = 50


@dataclass(frozen=True)
class Options:
    cells: int = 64
    hidden_size: int = 8
    """Neurons of each type."""
    input_size: int = 4
    steps: int = 10_000
    step_sizes: tuple[float, ...] = (0.02, 0.1, 0.5, 1.0)
    """All dt/tau of a cell."""
    singular_values: tuple[float, ...] = (1.0, 2.0, 4.0)
    """The largest of the recurrent weights."""
    seed: int = 0
    out: Path | None = None
    """A JSON file for the counts."""


def main(options: Options) -> None:
    rows = []
    print("diverged of " + str(options.cells) + " cells, by dt/tau")
    print(" " * 26 + "".join(f"{size:>8g}" for size in options.step_sizes))
    for rectified in (True, False):
        for largest in options.singular_values:
            start, counts = time.perf_counter(), []
            for size in options.step_sizes:
                torch.manual_seed(options.seed)
                counts.append(count_diverged(rectified, largest, size, options))
                rows.append(
                    {
                        "model": "rectified" if rectified else "main",
                        "largest_singular_value": largest,
                        "step_size": size,
                        "cells": options.cells,
                        "diverged": counts[-1],
                    }
                )
            label = f"{rows[-1]['model']}, Wr at {largest:g}"
            seconds = time.perf_counter() - start
            print(f"{label:26s}" + "".join(f"{n:>8d}" for n in counts) + f"  ({seconds:.0f} s)")
    if options.out:
        report = {"steps": options.steps, "limit": LIMIT, "rows": rows}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


@torch.no_grad()
def count_diverged(rectified: bool, largest: float, step_size: float, options: Options) -> int:
    """Number of random cells that diverge; all cells are stepped together, as one batch."""
    cells = [
        ORGaNICsCell(
            options.input_size,
            options.hidden_size,
            rectified=rectified,
            recurrence="unconstrained",
        )
        for _ in range(options.cells)
    ]
    parameters = with_steps(stack([cell.parameters_of_step() for cell in cells]), step_size)
    assert parameters.recurrent_weight is not None
    parameters = parameters._replace(recurrent_weight=largest * parameters.recurrent_weight)
    states = zip(*(cell.draw_state() for cell in cells), strict=True)
    state = State(*(torch.stack(part) for part in states))
    model = Model(rectified=rectified)
    constant = torch.rand(options.cells, options.input_size)
    half = options.cells // 2
    diverged = torch.zeros(options.cells, dtype=torch.bool)
    for step in range(options.steps):
        x = torch.rand_like(constant)
        x[:half] = constant[:half]
        state = euler_step(model, parameters, x, state)
        if step % EVERY == EVERY - 1:
            diverged |= ~torch.stack([inside(part) for part in state]).all(0)
            # A diverged cell says no more: it rests, so that its numbers cost no time.
            state = State(*(torch.where(diverged.unsqueeze(-1), 0.0, part) for part in state))
    return int(diverged.sum())


def inside(part: Tensor) -> Tensor:
    """Per cell: finite and within the limit. A comparison with NaN is False."""
    return (part.abs() <= LIMIT).all(-1)


def stack(parameters: list[Parameters]) -> Parameters:
    """The parameters of many cells with a leading dimension per cell."""
    fields: list[Any] = []
    for values in zip(*parameters, strict=True):
        if isinstance(values[0], GainParameters):
            parts = (torch.stack(part) for part in zip(*values, strict=True))
            fields.append(GainParameters(*parts))
        else:
            fields.append(torch.stack(values))
    return Parameters(*fields)


def with_steps(parameters: Parameters, step_size: float) -> Parameters:
    """The same parameters with every dt/tau at one value."""
    step = torch.full_like(parameters.step_y, step_size)
    gain, baseline = parameters.gain, parameters.baseline_gain
    return parameters._replace(
        step_y=step,
        step_a=step,
        gain=gain and gain._replace(step=step),
        baseline_gain=baseline and baseline._replace(step=step),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
