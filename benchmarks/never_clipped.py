"""Does training a bounded cell meet a value that is not finite, at learning rates up to 0.1?

Short trainings of classifiers of pixel sequences, nothing clipped: AdamW and Muon, each with a
learning rate of its own, log-uniform between 0.001 and 0.1; cells of 8 to 64 units of every model,
largest steps and readouts, from 196 to 784 steps. After every step the loss, each gradient and each
parameter are checked, and the states against the bound that the cell states.

    python benchmarks/never_clipped.py [--runs 20] [--recurrence bounded] [--out FILE]
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from deq_organics.checks import check_choice
from harness.output import machine, save_json
from recurrent import ORGaNICsRNN

CLASSES, BATCH = 10, 32


@dataclass(frozen=True)
class Options:
    """The command line."""

    runs: int = 20
    """Trainings."""
    steps: int = 60
    """Of the optimizers, in each."""
    recurrence: str = "bounded"
    """How Wr is constrained."""
    seed: int = 0
    """Of everything."""
    out: Path | None = None
    """A file for all figures."""


@dataclass(frozen=True)
class Training:
    """What one training is: its draw."""

    units: int
    length: int
    rate: float
    muon_rate: float
    max_step_y: float
    max_step_a: float
    max_step_b: float
    semisaturation: float
    model: str


def draw(generator: torch.Generator) -> Training:
    """Random options."""

    def choose(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    def log_uniform(low: float, high: float) -> float:
        part = float(torch.rand((), generator=generator))
        return math.exp(math.log(low) + part * math.log(high / low))

    return Training(
        units=choose(8, 32, 64),
        length=choose(196, 392, 784),
        rate=log_uniform(1e-3, 0.1),
        muon_rate=log_uniform(1e-3, 0.1),
        max_step_y=choose(0.02, 0.3, 1.0),
        max_step_a=choose(0.02, 0.3, 1.0),
        max_step_b=choose(0.1, 1.0),
        semisaturation=choose(0.3, 1.0, 2.0),
        model=choose("rectified", "rectified", "main", "after_weights"),
    )


def patterns(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences `(length, count, 2)` in [0, 1], and classes: noisy ones of ten fixed patterns."""
    fixed = torch.rand(CLASSES, length, generator=torch.Generator().manual_seed(length))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.rand(count, length, generator=generator)
    pixels = torch.where(noise < 0.5, fixed[labels], noise).round().T
    return torch.stack([pixels, 1 - pixels], -1), labels


def train(options: Options, training: Training, seed: int) -> dict[str, Any]:
    """One training: until its end, or the first value that is not finite."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rnn = ORGaNICsRNN(
        2,
        training.units,
        recurrence=options.recurrence,
        rectified=training.model != "main",
        rectifier="after_weights" if training.model == "after_weights" else "before_weights",
        semisaturation=training.semisaturation,
        max_step_y=training.max_step_y,
        max_step_a=training.max_step_a,
        max_step_b=training.max_step_b,
    )
    readout = nn.Linear(training.units, CLASSES)
    parameters = [*rnn.parameters(), *readout.parameters()]
    square = [part for part in rnn.parameters() if part.ndim == 2 and part.shape[1] > 2]
    rest = [part for part in parameters if all(part is not other for other in square)]
    optimizers = [
        torch.optim.AdamW(rest, lr=training.rate),
        torch.optim.Muon(square, lr=training.muon_rate, weight_decay=0.0),
    ]
    stated = list(rnn.state_bound()) if options.recurrence == "bounded" else []
    largest_norm = 0.0
    losses: list[float] = []
    for step in range(options.steps):
        x, labels = patterns(BATCH, training.length, generator)
        outputs, last = rnn(x)
        loss = F.cross_entropy(readout(outputs[-1]), labels)
        for part in parameters:
            part.grad = None
        loss.backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        for optimizer in optimizers:
            optimizer.step()
        values = [loss, outputs, *last, *parameters]
        if not math.isfinite(norm) or not all(bool(v.isfinite().all()) for v in values):
            return {"failed": f"not finite in step {step}", "largest_norm": None, "losses": losses}
        if stated and bool((outputs.abs() > stated[0]).any()):
            return {"failed": f"left its bound in step {step}", "largest_norm": None}
        largest_norm = max(largest_norm, norm)
        losses.append(float(loss.detach()))
    return {"failed": None, "largest_norm": largest_norm, "losses": losses}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    check_choice("recurrence", options.recurrence, ("bounded", "spectral", "unconstrained"))
    generator = torch.Generator().manual_seed(options.seed)
    rows = []
    for run in range(options.runs):
        training = draw(generator)
        found = train(options, training, options.seed + run)
        rows.append({**asdict(training), **found})
        end = found["failed"] or (
            f"loss {found['losses'][0]:.2f} to {found['losses'][-1]:.2f}, "
            f"largest gradient {found['largest_norm']:.3g}"
        )
        print(
            f"{run + 1:3}  {training.model:13} {training.units:3} units, {training.length} steps, "
            f"rates {training.rate:.4f} and {training.muon_rate:.4f}: {end}",
            flush=True,
        )
    failed = sum(row["failed"] is not None for row in rows)
    print(f"{failed} of {len(rows)} trainings met a value that is not finite or left the bound")
    if options.out is not None:
        save_json(options.out, {"machine": machine(), "rows": rows})
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
