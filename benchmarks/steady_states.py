"""Does the default solver find every steady state that there is? Random circuits, float64.

Circuits: entries of b0, b, sigma and W uniform in (0, 1), Wr Gaussian and scaled to largest
singular value 1, an input drive z of random direction with |z| = 1, tau = 1; one set of weights
per circuit. Each is solved with ``solver="auto"``, ``tol=1e-10``. The solver's word is not taken:

- where it reports a steady state, the residual is recomputed from the vector field (largest of
  both equations, each relative to its scale) and all eigenvalues of the Jacobian are computed by
  numpy: solved means a residual of at most 1e-10 and no eigenvalue with a real part >= 0;
- where it reports none, scipy's stiff ODE solver follows the circuit's trajectory from rest
  (y = 0, a = b0^2 sigma^2) for 1,000 time constants or more, with an implementation of its own
  of the equations: the trajectory must diverge or keep moving. One that settles is the solver's
  failure, and listed with its n and index. (``--starts K`` also follows K trajectories from random
  states: where one of these settles, the circuit has a stable steady state out of reach from rest.)

Beside it stands the failure rate of the paper's Algorithm 1 on the same circuits. The script exits
with 1 if the solver failed on any circuit.

    python benchmarks/steady_states.py [--circuits 1000] [--out steady_states.json]
"""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from deq_organics import Circuit, Status, SteadyState, draw_circuits
from deq_organics.steady_state.methods.normalized import solve_normalized
from harness.output import machine, save_json, table
from harness.trajectory import Fate, Parameters, follow, random_start, rest

TOL = 1e-10
FAST_ITERATIONS = 60
ALGORITHM1_ITERATIONS = 100
PAPER_ITERATIONS, PAPER_TOL = 10, 1e-6
LARGE = 40


@dataclass(frozen=True)
class Options:
    sizes: tuple[int, ...] = (1, 2, 3, 10, 40, 80)
    """Numbers n of neurons of each type."""
    circuits: int = 100_000
    """Random circuits for each n below 40."""
    large_circuits: int = 1_000
    """Random circuits for each n from 40 on (at most --circuits)."""
    duration: float = 1_000.0
    """Time constants for which a reported circuit's trajectory is followed."""
    starts: int = 0
    """Random starts from which reported circuits are followed besides rest."""
    seed: int = 0
    processes: int = 2
    """Processes that follow trajectories."""
    out: Path | None = None
    """JSON file for the figures."""


@dataclass
class Tally:
    """Counts over the circuits of one size."""

    n: int
    circuits: int = 0
    solved: int = 0
    unstable_or_inaccurate: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    settles_from_elsewhere: int = 0
    safeguarded: int = 0
    worst_residual: float = 0.0
    largest_real_part: float = -np.inf
    algorithm1_failed: int = 0
    algorithm1_failed_reachable: int = 0
    algorithm1_unstable: int = 0
    paper_failed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def batches(n: int, circuits: int, seed: int) -> Iterator[tuple[int, Circuit]]:
    """The first index and the circuits of each batch; a circuit is set by n, its index and seed."""
    size = 250 if n >= LARGE else 20_000
    for number, first in enumerate(range(0, circuits, size)):
        batch_seed = int(np.random.SeedSequence([seed, n, number]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(batch_seed)
        yield first, draw_circuits(min(size, circuits - first), n, generator=generator)


def recomputed_residual(circuit: Circuit, state: SteadyState) -> Tensor:
    """``max(|y'| / max(|y|, |d|), |a'| / |a|)`` for tau = 1, ``(B,)``."""
    dy, da = circuit.vector_field(state.y, state.a)
    scale = torch.maximum(state.y.norm(dim=-1), circuit.input_drive.norm(dim=-1))
    return torch.maximum(dy.norm(dim=-1) / scale, da.norm(dim=-1) / state.a.norm(dim=-1))


def leading_real_part(circuit: Circuit, state: SteadyState, rows: Tensor) -> np.ndarray:
    """Largest real part of the Jacobian's eigenvalues at the states ``rows``, by numpy."""
    jacobian = circuit.jacobian(state.y, state.a)[rows].numpy()
    if not len(jacobian):
        return np.empty(0)
    return np.linalg.eigvals(jacobian).real.max(-1)


def trajectory_fates(
    circuit: Parameters, duration: float, starts: int, seed: int
) -> tuple[Fate, float, list[Fate]]:
    """The fate and last speed from rest, and the fates from random starts."""
    fate, speed = follow(circuit, rest(circuit), duration)
    generator = np.random.default_rng(seed)
    others = [follow(circuit, random_start(circuit, generator), duration)[0] for _ in range(starts)]
    return fate, speed, others


def examine(
    circuit: Circuit, first: int, tally: Tally, options: Options, pool: ProcessPoolExecutor
) -> None:
    """Solve one batch and check every outcome."""
    start = time.perf_counter()
    state = circuit.steady_state("auto", tol=TOL, on_failure="ignore")
    tally.seconds += time.perf_counter() - start
    tally.circuits += len(state.status)
    tally.statuses.update(Status(code).name for code in state.status.tolist())

    fast = solve_normalized(circuit.flatten(), TOL, FAST_ITERATIONS)
    by_fast = (fast.status == Status.CONVERGED) & (fast.y == state.y).all(-1)
    tally.safeguarded += int((~by_fast).sum())

    found = state.converged.nonzero().squeeze(-1)
    residual = recomputed_residual(circuit, state)[found].numpy()
    leading = leading_real_part(circuit, state, found)
    good = (residual <= TOL) & (leading < 0)
    tally.solved += int(good.sum())
    tally.worst_residual = max(tally.worst_residual, float(residual.max(initial=0.0)))
    tally.largest_real_part = max(tally.largest_real_part, float(leading.max(initial=-np.inf)))
    for row in np.flatnonzero(~good):
        tally.unstable_or_inaccurate += 1
        tally.failures.append(
            f"n = {tally.n}, index {first + int(found[row])}: reported as solved, residual "
            f"{residual[row]:.2e}, largest real part {leading[row]:.3g}"
        )

    reported = (~state.converged).nonzero().squeeze(-1).tolist()
    tasks = []
    for i in reported:
        assert circuit.recurrent_weight is not None
        parts = (
            circuit.input_drive,
            circuit.inhibitory_drive,
            circuit.recurrent_weight,
            circuit.normalization_weight,
        )
        parameters = Parameters(*(part[i].numpy() for part in parts))
        seed = options.seed + first + i
        tasks.append(
            pool.submit(trajectory_fates, parameters, options.duration, options.starts, seed)
        )
    for i, task in zip(reported, tasks, strict=True):
        fate, speed, others = task.result()
        tally.fates[fate.value] += 1
        tally.settles_from_elsewhere += Fate.SETTLES in others
        if fate in (Fate.SETTLES, Fate.UNDECIDED):
            name = Status(int(state.status[i])).name
            tally.failures.append(
                f"n = {tally.n}, index {first + i}: reported as {name}, but its trajectory from "
                f"rest {'settles' if fate is Fate.SETTLES else 'is undecided'} "
                f"(last relative speed {speed:.2e})"
            )

    paper = circuit.steady_state(
        "algorithm1", tol=PAPER_TOL, max_iter=PAPER_ITERATIONS, on_failure="ignore"
    )
    tally.paper_failed += int((~paper.converged).sum())
    peer = circuit.steady_state(
        "algorithm1", tol=TOL, max_iter=ALGORITHM1_ITERATIONS, on_failure="ignore"
    )
    tally.algorithm1_failed += int((~peer.converged).sum())
    tally.algorithm1_failed_reachable += int((state.converged & ~peer.converged).sum())
    elsewhere = (
        peer.converged & ~((peer.y - state.y).norm(dim=-1) <= 1e-6 * (1 + state.y.norm(dim=-1)))
    ).nonzero()
    unstable = leading_real_part(circuit, peer, elsewhere.squeeze(-1)) >= 0
    tally.algorithm1_unstable += int(unstable.sum())


def summary(tallies: list[Tally]) -> str:
    """The table at the end."""
    header = [
        "n",
        "circuits",
        "solved",
        "reported",
        "of these: diverge",
        "keep moving",
        "SETTLE",
        "undecided",
        "safeguarded",
        "us/circuit",
        "Alg. 1 fails",
        "(has one)",
        "10 it., 1e-6",
    ]

    def share(count: int, tally: Tally) -> str:
        return f"{100 * count / tally.circuits:.3f} %"

    rows = [
        [
            str(tally.n),
            f"{tally.circuits:,}",
            f"{tally.solved:,}",
            f"{sum(tally.fates.values()):,}",
            *(
                f"{tally.fates[fate.value]:,}"
                for fate in (Fate.DIVERGES, Fate.KEEPS_MOVING, Fate.SETTLES, Fate.UNDECIDED)
            ),
            share(tally.safeguarded, tally),
            f"{1e6 * tally.seconds / tally.circuits:.0f}",
            share(tally.algorithm1_failed, tally),
            share(tally.algorithm1_failed_reachable, tally),
            share(tally.paper_failed, tally),
        ]
        for tally in tallies
    ]
    return table(header, rows)


def main(options: Options) -> int:
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    start = time.perf_counter()
    tallies = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for n in options.sizes:
            limit = options.large_circuits if n >= LARGE else options.circuits
            circuits = min(limit, options.circuits)
            tally = Tally(n)
            with tqdm(total=circuits, desc=f"n = {n}", unit="circuit") as progress:
                for first, circuit in batches(n, circuits, options.seed):
                    examine(circuit, first, tally, options, pool)
                    progress.update(circuit.batch_shape[0])
            tallies.append(tally)
    seconds = time.perf_counter() - start
    print(f"\nsolver='auto', tol={TOL:g}, float64, seed {options.seed}; {seconds:.0f} s in all")
    print(summary(tallies))
    print(
        "safeguarded: not left to the fast iteration alone. Alg. 1 fails: residual above "
        f"{TOL:g} after {ALGORITHM1_ITERATIONS} iterations;\n(has one): although the circuit has "
        f"a stable steady state; last column: residual above {PAPER_TOL:g} after "
        f"{PAPER_ITERATIONS} iterations."
    )
    for tally in tallies:
        statuses = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.statuses.items()))
        print(
            f"n = {tally.n}: {statuses}; worst residual {tally.worst_residual:.1e}, largest real "
            f"part {tally.largest_real_part:.2e}; Algorithm 1 ends at an unstable fixed point in "
            f"{tally.algorithm1_unstable:,}"
            + (
                f"; settle from one of {options.starts} random starts: "
                f"{tally.settles_from_elsewhere:,}"
                if options.starts
                else ""
            )
        )
    failures = [failure for tally in tallies for failure in tally.failures]
    print(f"FAILURES of the solver: {len(failures)}")
    for failure in failures:
        print(f"  {failure} (seed {options.seed})")
    record: dict[str, Any] = {
        "benchmark": "steady_states",
        "machine": machine(),
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "tol": TOL,
        "seconds": seconds,
        "failures": len(failures),
        "results": [
            {**vars(tally), "statuses": dict(tally.statuses), "fates": dict(tally.fates)}
            for tally in tallies
        ],
    }
    save_json(options.out, record)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
