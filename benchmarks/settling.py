"""Is what `settle` says of random circuits true, against a long stiff integration?

Circuits of 1 to 6 neurons of each type by the paper's distribution, with largest singular values
of 1 to 6, time constants over up to two decades, exponents 1.5, 2 and 3, both models, from rest or
from a random state. Beside `settle` scipy's LSODA integrates equations that are written here again,
to three times the time that `settle` took and 200 of the longest time constants, with a relative
tolerance of 1e-9.

- A fixed point is confirmed if that trajectory ends there and stays there.
- A cycle is confirmed if it still moves in the end, and comes back after the period that was told.
- A divergence is confirmed if it exceeds 1e12 times the size of the drives.

What `settle` leaves undecided is counted. What the integration does not get through within its
steps is counted as ``unsure``.

    python benchmarks/settling.py [--circuits 10000] [--seconds 300] [--out settling.json]
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.integrate import LSODA

from deq_organics import Circuit, Fate, draw_circuits, settle
from harness.output import machine, save_json, table

__all__ = ["Oracle", "compare", "draw"]

BATCH = 50
_STEPS = 40_000
# A trajectory was seen to come back to a stable fixed point from 1e9 times that size.
_FAR = 1e12


@dataclass(frozen=True)
class Options:
    circuits: int = 10_000
    seconds: float = 300.0
    """After so long no further batch is begun."""
    threads: int | None = 1
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


class Oracle:
    """One circuit's equations in numpy, and where its trajectory goes."""

    def __init__(self, circuit: Circuit, row: int) -> None:
        p = circuit.parameters
        self.n, self.m, self.rectified = circuit.n, p.exponent, p.rectified
        shape = (circuit.batch_shape[0], circuit.n)
        self.d, self.c, self.tau_y, self.tau_a = (
            part.expand(shape)[row].numpy()
            for part in (p.input_drive, p.inhibitory_drive, p.tau_y, p.tau_a)
        )
        assert p.recurrent_weight is not None
        self.wr, self.w = p.recurrent_weight[row].numpy(), p.normalization_weight[row].numpy()
        self.size = max(1.0, np.abs(self.d).max(), self.c.max(), self.w.max() ** (-1.0 / self.m))

    def flow(self, _: float, x: Any) -> Any:
        y, a = x[: self.n], np.maximum(x[self.n :], 0.0)
        shown = np.maximum(y, 0.0) if self.rectified else y
        rise = -y + self.d + (1.0 - a ** (1.0 / self.m)) * (self.wr @ shown)
        pool = self.w @ (np.abs(shown) ** self.m * a)
        return np.concatenate([rise / self.tau_y, (-x[self.n :] + self.c + pool) / self.tau_a])

    def follow(self, start: Any, span: float, window: float) -> tuple[str, Any, Any]:
        """``"done"``, ``"diverged"`` or ``"unsure"``; the end; the state a window before it."""
        solver = LSODA(self.flow, 0.0, start, span, rtol=1e-9, atol=1e-12)
        before = start
        with np.errstate(all="ignore"):
            for _ in range(_STEPS):
                solver.step()
                if not np.isfinite(solver.y).all() or np.abs(solver.y).max() > _FAR * self.size:
                    return "diverged", solver.y, before
                if solver.status == "failed":
                    return "unsure", solver.y, before
                mark = span - window
                if solver.t_old < mark <= solver.t:
                    before = solver.dense_output()(mark)
                if solver.status == "finished":
                    return "done", solver.y, before
        return "unsure", solver.y, before


def draw(count: int, generator: torch.Generator) -> tuple[Circuit, torch.Tensor, torch.Tensor]:
    """Circuits and the states ``(y, a)`` from which to start."""

    def one_of(choices: tuple[Any, ...]) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    n = one_of((1, 2, 3, 4, 6))
    drawn = draw_circuits(
        count, n, singular_value=one_of((1.0, 2.0, 3.0, 4.0, 6.0)), generator=generator
    ).parameters
    decades = one_of((0.0, 1.0, 2.0))

    def spread() -> torch.Tensor:
        uniform = torch.rand(count, n, generator=generator, dtype=torch.float64) - 0.5
        return 10.0 ** (decades * uniform)

    tau_y, tau_a = spread(), spread() * one_of((0.3, 1.0, 3.0, 10.0))
    made = Circuit(*drawn[:4], tau_y, tau_a, one_of((2.0, 2.0, 1.5, 3.0)), one_of((False, True)))
    y, a = torch.zeros_like(made.input_drive), made.inhibitory_drive.clone()
    if one_of((True, False)):
        y = 3.0 * torch.randn(count, n, generator=generator, dtype=torch.float64)
        a = a * (3.0 * torch.rand(count, n, generator=generator, dtype=torch.float64)).exp()
    return made, y, a


def compare(circuit: Circuit, y: torch.Tensor, a: torch.Tensor) -> list[tuple[str, str, str]]:
    """Of each circuit what `settle` says, ``"right"``, ``"wrong"`` or ``"unsure"``, and why."""
    found = settle(circuit, (y, a))
    verdicts = []
    for row in range(len(y)):
        kind = Fate(int(found.fate[row]))
        if kind == Fate.UNDECIDED:
            verdicts.append((kind.name, "undecided", ""))
            continue
        oracle = Oracle(circuit, row)
        period = float(found.period[row])
        slowest = max(oracle.tau_y.max(), oracle.tau_a.max())
        window = period if kind == Fate.CYCLE else 5.0 * slowest
        span = 3.0 * float(found.time[row]) + 200.0 * slowest + window
        start = np.concatenate([y[row].numpy(), a[row].numpy()])
        how, end, before = oracle.follow(start, span, window)
        told = np.concatenate([found.y[row].numpy(), found.a[row].numpy()])
        size = np.maximum(np.abs(end), 1e-3 * np.abs(end).max())
        if how == "unsure":
            verdicts.append((kind.name, how, ""))
            continue
        moving = np.abs(oracle.flow(0.0, end) * slowest / size).max() > 1e-4
        if kind == Fate.DIVERGENCE:
            good = how == "diverged"
        elif kind == Fate.FIXED_POINT:
            good = how == "done" and not moving and bool((np.abs(end - told) < 1e-3 * size).all())
        else:
            swing = np.concatenate(
                [
                    (found.highest_y - found.lowest_y)[row].numpy(),
                    (found.highest_a - found.lowest_a)[row].numpy(),
                ]
            )
            back = np.abs(end - before) <= 1e-2 * np.where(np.isnan(swing), size, swing).max()
            good = how == "done" and bool(moving) and bool(back.all())
        why = "" if good else f"{how}, moving {moving}, end {end}, told {told}, period {period}"
        verdicts.append((kind.name, "right" if good else "wrong", why))
    return verdicts


def main(options: Options) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    counts: dict[str, dict[str, int]] = {kind.name: {} for kind in Fate}
    wrong: list[str] = []
    total, begin = 0, time.perf_counter()
    while total < options.circuits and time.perf_counter() - begin < options.seconds:
        batch = min(BATCH, options.circuits - total)
        for kind, verdict, why in compare(*draw(batch, generator)):
            counts[kind][verdict] = counts[kind].get(verdict, 0) + 1
            if verdict == "wrong":
                wrong.append(f"{kind}: {why}")
        total += batch
    columns = ("right", "wrong", "unsure", "undecided")
    rows = [[kind, *(str(row.get(name, 0)) for name in columns)] for kind, row in counts.items()]
    seconds = time.perf_counter() - begin
    print(f"{total} circuits in {seconds:.0f} s")
    print(table(["", *columns], rows))
    print("\n".join(wrong))
    record = {
        "benchmark": "settling",
        "machine": machine(),
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "circuits": total,
        "counts": counts,
        "wrong": wrong,
    }
    save_json(options.out, record)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
