"""Is any verdict on stability wrong, or any leading eigenvalue?

Random circuits, some of them at fixed points that are chosen (stable or not), some solved by the
default solver: sizes on both sides of those at which the library changes its method, time constants
over 0 to 5 decades, recurrent weights of several kinds with norms 0.1 to 5, exponents 1.5, 2 and 3,
both models. Beside them stand eigenvalues by numpy of Jacobians by complex steps.

A verdict is wrong if numpy's largest real part has the other sign and exceeds 1e-9 of the size of
the spectrum; a leading eigenvalue is inaccurate if it is off by more than 1e-6 of that size. Where
two of numpy's own answers (of the Jacobian, and of it transposed and scaled) differ by more than a
tenth of that, the circuit counts as ``unsure`` and is left out. The default solver must not return
an unstable state as converged.

    python benchmarks/verdicts.py [--circuits 20000] [--out verdicts.json]
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor

from deq_organics import Circuit, check_stability
from harness.circuit_draws import RECURRENCES, Draw, at_fixed_points, driven, spectra
from harness.output import machine, save_json, table

__all__ = ["Tally", "examine", "random_draw"]

SIZES = (1, 2, 3, 5, 8, 11, 12, 16, 24, 32, 40, 48, 63, 64, 65, 80, 100)
# Default solves of larger circuits take minutes where the dynamics have to be followed.
LARGEST_SOLVED = 48
NORMS = (0.1, 0.3, 0.9, 1.0, 2.0, 3.0, 5.0)
DECADES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
BATCH = 16
DECISIVE, ACCURACY = 1e-9, 1e-6


@dataclass(frozen=True)
class Options:
    circuits: int = 20_000
    solved_share: float = 0.2
    """Part of the circuits that the default solver is asked for."""
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


@dataclass
class Tally:
    """Counts of circuits, and the largest error of a leading eigenvalue, relative."""

    circuits: int = 0
    unsure: int = 0
    unstable: int = 0
    wrong: int = 0
    undecided: int = 0
    inaccurate: int = 0
    largest_error: float = 0.0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)
    """What was wrong, in words."""

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            if name == "largest_error":
                self.largest_error = max(self.largest_error, value)
            else:
                setattr(self, name, getattr(self, name) + value)


def random_draw(generator: torch.Generator, sizes: tuple[int, ...] = SIZES) -> Draw:
    def one_of(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    return Draw(
        one_of(list(RECURRENCES)),
        one_of(sizes),
        one_of(DECADES),
        one_of(NORMS),
        one_of((2.0, 2.0, 1.5, 3.0)),
        one_of((False, False, True)),
        one_of((True, True, False)),
    )


def examine(draw: Draw, batch: int, generator: torch.Generator, solve: bool) -> Tally:
    """Draw circuits and compare what the library says of them with numpy."""
    if solve:
        circuit = driven(draw, batch, generator)
        state = circuit.steady_state(tol=1e-10, on_failure="ignore")
        rows = state.converged.nonzero().squeeze(-1)
        y, a = state.y[rows], state.a[rows]
        circuit = _select(circuit, rows)
    else:
        circuit, y, a = at_fixed_points(draw, batch, generator)
    if y.shape[0] == 0:
        return Tally()
    start = time.perf_counter()
    report = check_stability(circuit, (y, a))
    seconds = time.perf_counter() - start
    values, doubt = spectra(circuit, y, a)
    size = np.abs(values).max(-1)
    real = values.real.max(-1)
    sure = doubt <= 0.1 * np.maximum(DECISIVE * size, 1e-3 * np.abs(real))
    decisive = sure & (np.abs(real) > DECISIVE * size)
    stable, undecided = report.stable.numpy(), report.undecided.numpy()
    wrong = decisive & (stable != (real < 0))
    if solve:
        # Every state that the default solver calls converged is stable.
        wrong |= sure & (real > DECISIVE * size)
    leading = report.leading_eigenvalue.numpy()
    error = np.abs(leading.real - real) / size
    nearest = np.abs(np.concatenate([values, values.conj()], -1) - leading[:, None]).min(-1) / size
    trusted = doubt <= 0.1 * ACCURACY * size
    error = np.where(trusted, np.maximum(error, nearest), 0.0)
    inaccurate = ~(error <= ACCURACY)
    tally = Tally(
        circuits=len(y),
        unsure=int((~sure).sum()),
        unstable=int((real > 0).sum()),
        wrong=int(wrong.sum()),
        undecided=int(undecided.sum()),
        inaccurate=int(inaccurate.sum()),
        largest_error=float(error.max()),
        seconds=seconds,
    )
    for k in np.flatnonzero(wrong | inaccurate | (undecided & decisive))[:2]:
        tally.examples.append(
            f"{draw}, {'solved' if solve else 'chosen'}: real part {real[k]:.3e} of size "
            f"{size[k]:.3e}, stable {stable[k]}, undecided {undecided[k]}, error {error[k]:.1e}"
        )
    return tally


Part = TypeVar("Part", Tensor, Tensor | None)


def _select(circuit: Circuit, rows: Tensor) -> Circuit:
    def pick(part: Part, core: int) -> Part:
        return part if part is None or part.ndim == core else part[rows]

    return Circuit(
        circuit.input_drive[rows],
        pick(circuit.inhibitory_drive, 1),
        pick(circuit.recurrent_weight, 2),
        pick(circuit.normalization_weight, 2),
        pick(circuit.tau_y, 1),
        pick(circuit.tau_a, 1),
        circuit.exponent,
        circuit.rectified,
    )


def main(options: Options) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    generator = torch.Generator().manual_seed(options.seed)
    tallies: dict[str, Tally] = {}
    count = 0
    while count < options.circuits:
        solve = bool(torch.rand((), generator=generator) < options.solved_share)
        sizes = tuple(n for n in SIZES if not solve or n <= LARGEST_SOLVED)
        draw = random_draw(generator, sizes)
        found = examine(draw, BATCH, generator, solve)
        count += found.circuits
        for key in (draw.recurrence, f"{draw.decades:g} decades", "solved" if solve else "chosen"):
            tallies.setdefault(key, Tally()).add(found)
    total = Tally()
    for kind in RECURRENCES:
        total.add(tallies.get(kind, Tally()))
    rows = [("all", total), *sorted(tallies.items())]
    counts = ("circuits", "unstable", "unsure", "wrong", "undecided", "inaccurate")
    cells = [
        [
            name,
            *(str(getattr(tally, column)) for column in counts),
            f"{tally.largest_error:.1e}",
            f"{tally.seconds:.0f}",
        ]
        for name, tally in rows
    ]
    print(table(["", *counts, "largest error", "seconds"], cells))
    for example in total.examples:
        print(example)
    record = {
        "benchmark": "verdicts",
        "machine": facts,
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "tallies": {name: asdict(tally) for name, tally in rows},
    }
    save_json(options.out, record)
    return int(total.wrong + total.inaccurate > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
