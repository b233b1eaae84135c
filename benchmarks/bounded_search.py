"""Tries to drive cells out of the bound that they state, and cells with another Wr out of 1,000.

    python benchmarks/bounded_search.py --out bounded_search.json                 # 100,000 cells
    python benchmarks/bounded_search.py --recurrence spectral --cells 10000

A third of the cells is drawn at random, with weights of any size; of another third the weights,
the input and the initial state then follow the gradient of the largest state; of the last third
too, from weights of the size of a start. Options (model, sigma, largest input, largest dt/tau)
differ from batch to batch, half of the batches are in single precision. Each cell is driven by its
input again and again, the first cells of each batch for `--long` steps. A state is outside where it
exceeds the cell's `state_bound` or is not finite; of cells that state none, where it exceeds 1,000.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurrent import ORGaNICsCell, State
from recurrent.dynamics import GainParameters, Model, Parameters, euler_step

LIMIT = 1e3
WEIGHTS = ("input_weight", "recurrent_weight", "normalization_weight")
STEPS = ("step_y", "step_a", "step_b", "step_b0")
GAINS = tuple(f"{gain}_weight_{part}" for gain in ("gain", "baseline_gain") for part in "xya")


@dataclass(frozen=True)
class Attack:
    """How cells are attacked.

    Attributes:
        scale: of the unconstrained parameters: standard deviation at most.
        ascent: steps along the gradient.
        window: Euler steps that the gradient sees, and the period of the input.
    """

    scale: float
    ascent: int
    window: int


ATTACKS = (Attack(10.0, 0, 40), Attack(10.0, 20, 40), Attack(1.0, 20, 40))


class Victims:
    """A batch of cells with equal options and different parameters, inputs and initial states.

    Args:
        cell: has the options and the constraints.
        count: the number of cells.
        attack: how they are drawn.
    """

    def __init__(self, cell: ORGaNICsCell, count: int, attack: Attack) -> None:
        self.cell = cell
        like, bound = cell.semisaturation, stated_bound(cell)
        # Without a bound of its own a cell starts where a bounded one would, with input up to 1.
        self.box = State(*like.new_tensor([1.0, 4.0, 1.0, 1.0])) if bound is None else bound
        self.input_bound = 1.0 if cell.box is None else cell.box.input_bound
        self.limit = State(*like.new_full((4,), LIMIT)) if bound is None else bound

        def draw(*shape: int) -> Tensor:
            size = attack.scale * torch.rand(count, *[1] * len(shape), dtype=like.dtype)
            return size * torch.randn(count, *shape, dtype=like.dtype)

        self.raw = {
            name: draw(*free_parameter(cell, name).shape) for name in (*WEIGHTS, *STEPS, *GAINS)
        }
        self.x = draw(attack.window, cell.input_size)
        self.start = draw(4, cell.hidden_size)

    def tensors(self) -> list[Tensor]:
        """All that an attack may change."""
        return [self.x, self.start, *self.raw.values()]

    def parameters(self) -> Parameters:
        """The parameters by the cell's own constraints, a leading dimension per cell."""
        value = {name: constrain(self.cell, name, free) for name, free in self.raw.items()}
        gain, baseline = (
            GainParameters(*[*(value[f"{gain}_weight_{part}"] for part in "xya"), value[step]])
            for gain, step in (("gain", "step_b"), ("baseline_gain", "step_b0"))
        )
        sigma = self.cell.semisaturation
        weights, steps = (value[w] for w in WEIGHTS), (value[s] for s in STEPS[:2])
        fields: tuple[Any, ...] = (*weights, sigma, *steps, gain, baseline)
        return Parameters(*fields)

    def inputs(self) -> Tensor:
        """One period, `(window, cells, input_size)`, within the bound."""
        return self.input_bound * self.x.tanh().transpose(0, 1)

    def first_state(self) -> State:
        """Within the box: `y` of both signs, the others not negative."""
        y, *others = self.start.unbind(1)
        inside = (y.tanh(), *(part.sigmoid() for part in others))
        return State(*(top * part for top, part in zip(self.box, inside, strict=True)))


def free_parameter(cell: ORGaNICsCell, name: str) -> Tensor:
    """What a parameter is computed from; itself where nothing constrains it."""
    constrained = getattr(cell.parametrizations, name, None)
    return getattr(cell, name) if constrained is None else constrained.original


def constrain(cell: ORGaNICsCell, name: str, free: Tensor) -> Tensor:
    """A parameter of many cells, by the constraint of one."""
    constrained = getattr(cell.parametrizations, name, None)
    return free if constrained is None else constrained.constraint(free)


def stated_bound(cell: ORGaNICsCell) -> State | None:
    """What the cell says, if it says anything."""
    return None if cell.box is None else cell.state_bound(cell.box.input_bound)


def ascend(victims: Victims, model: Model, attack: Attack) -> None:
    """Follow the gradient of each cell's largest y and a, relative to the bound."""
    tensors = [part.requires_grad_() for part in victims.tensors()]
    optimizer = torch.optim.Adam(tensors, lr=0.3)
    for _ in range(attack.ascent):
        parameters, state = victims.parameters(), victims.first_state()
        tops = []
        for x in victims.inputs():
            state = euler_step(model, parameters, x, state)
            tops.append((state.y.abs() / victims.limit.y).amax(-1))
            tops.append((state.a.abs() / victims.limit.a).amax(-1))
        # Soft: the gradient of the very largest alone would see one neuron at one step.
        score = (10.0 * torch.stack(tops)).clamp_max(50.0).logsumexp(0).sum()
        optimizer.zero_grad()
        (-score).backward()
        for part in tensors:
            if part.grad is not None:
                part.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
    for part in tensors:
        part.requires_grad_(False)


@torch.no_grad()
def drive(victims: Victims, model: Model, steps: int, long: int, few: int) -> tuple[Tensor, Tensor]:
    """Step all cells, the first few of them for longer.

    Returns:
        Which cells left their bound, `(cells,)`, and the largest parts of it that were reached,
        `(4, cells)`.
    """
    parameters, state, inputs = victims.parameters(), victims.first_state(), victims.inputs()
    reached = torch.zeros(4, len(victims.start), dtype=inputs.dtype)
    for step in range(long):
        if step == steps:
            parameters, inputs = first_cells(parameters, few), inputs[:, :few]
            state = State(*(part[:few] for part in state))
        state = euler_step(model, parameters, inputs[step % len(inputs)], state)
        now = torch.stack(
            [(part.abs() / top).amax(-1) for part, top in zip(state, victims.limit, strict=True)]
        ).nan_to_num(torch.inf, torch.inf)
        known = reached[:, : now.shape[1]]
        torch.maximum(known, now, out=known)
        if torch.isinf(now).any():
            # A diverged cell says no more: it rests, so that its numbers cost no time.
            gone = torch.isinf(now).any(0).unsqueeze(-1)
            state = State(*(torch.where(gone, 0.0, part) for part in state))
    return (reached > 1.0).any(0), reached


def first_cells(parameters: Parameters, count: int) -> Parameters:
    """The parameters of the first few cells; sigma is shared by all."""
    gain, baseline = (
        GainParameters(*(tensor[:count] for tensor in part))
        for part in (parameters.gain, parameters.baseline_gain)
        if part is not None
    )
    *weights, sigma, step_y, step_a = parameters[:6]
    cut = (tensor[:count] for tensor in weights if tensor is not None)
    fields: tuple[Any, ...] = (*cut, sigma, step_y[:count], step_a[:count], gain, baseline)
    return Parameters(*fields)


def draw_cell(recurrence: str, generator: torch.Generator, dtype: torch.dtype) -> ORGaNICsCell:
    """A cell with random options."""

    def choose(*values: object) -> object:
        return values[int(torch.randint(len(values), (), generator=generator))]

    options: dict[str, object] = {
        "semisaturation": choose(0.1, 0.5, 1.0, 1.0, 3.0),
        **choose({}, {}, {"rectified": False}, {"rectifier": "after_weights"}),  # type: ignore[dict-item]
        **{f"max_step_{part}": choose(0.02, 0.3, 1.0) for part in "yab"},
    }
    if recurrence == "bounded":
        options["input_bound"] = choose(0.1, 1.0, 1.0, 10.0)
    sizes = int(choose(1, 2, 3)), int(choose(1, 2, 3, 6, 12))  # type: ignore[call-overload]
    return ORGaNICsCell(*sizes, recurrence=recurrence, dtype=dtype, **options)  # type: ignore[arg-type]


def search(
    recurrence: str, cells: int, *, batch: int, steps: int, long: int, few: int, seed: int
) -> dict[str, Any]:
    """Attack so many cells; the counts and the largest parts of the bound that were reached."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    done = outside = 0
    reached = torch.zeros(4, dtype=torch.float64)
    while done < cells:
        index, count = done // batch, min(batch, cells - done)
        dtype = torch.float32 if index % 2 else torch.float64
        attack = ATTACKS[index // 2 % len(ATTACKS)]
        cell = draw_cell(recurrence, generator, dtype)
        victims = Victims(cell, count, attack)
        ascend(victims, cell.model, attack)
        left, parts = drive(victims, cell.model, steps, long, few)
        outside += int(left.sum())
        reached = torch.maximum(reached, parts.amax(-1).double())
        done += count
    largest = dict(zip(State._fields, reached.tolist(), strict=True))
    return {"recurrence": recurrence, "cells": done, "outside": outside, "reached": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--recurrence", nargs="+", default=["bounded", "spectral"])
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--long", type=int, default=20_000)
    parser.add_argument("--long-cells", type=int, default=10, help="of each batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for recurrence in arguments.recurrence:
        start = time.perf_counter()
        rows.append(
            search(
                recurrence,
                arguments.cells,
                batch=arguments.batch,
                steps=arguments.steps,
                long=arguments.long,
                few=arguments.long_cells,
                seed=arguments.seed,
            )
        )
        rows[-1]["seconds"] = time.perf_counter() - start
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**vars(arguments), "out": None, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
