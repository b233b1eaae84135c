"""Puts Conjecture 5.3 to the test: has every random circuit a stable steady state?

Circuits are drawn over the number of neurons, the kind and the largest singular value of the
recurrent weights, the norm of the input and the semisaturation, and each is searched for a stable
steady state. A table and a picture show how many have one, with 95 % confidence intervals.
With --search circuits are not only drawn: their parameters follow the gradient of the leading
eigenvalue's real part until they have no stable steady state, under several added conditions.

    python examples/stability_survey.py [--sizes 10] [--out DIR] [--resume]
    torchrun --nproc-per-node 2 examples/stability_survey.py
    python examples/stability_survey.py --search
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from accelerate import PartialState
from tqdm import tqdm

from program.device import choose_device
from program.errors import ExampleError, run_example
from program.files import open_new_folder, write_json
from program.options import argument, check_range, refuse_given
from survey.conditions import WEIGHTS, Condition
from survey.counterexamples import search_all
from survey.report import plot_survey, render_table
from survey.verdicts import Verdict, classify

HEADER, RESULTS, PICTURE = "survey.json", "results.json", "stability_survey.png"
# Blocks of circuits for each singular value; those of large ones take far more time.
BLOCKS = {1.0: 4, 1.5: 2, 2.0: 2, 3.0: 1}
# Input norm and largest sigma: the paper's, weaker inputs, and less semisaturation.
SURROUNDINGS = ((1.0, 1.0), (0.3, 1.0), (1.0, 0.1))
# At this size all surroundings are tried; at others the paper's.
MAIN_SIZE = 10


@dataclass
class Options:
    """The command line."""

    sizes: Annotated[tuple[int, ...], argument("N ...", "1 2 3 5 10")] = (1, 2, 3, 5, MAIN_SIZE)
    """Numbers of neurons of each type."""
    circuits: Annotated[int, argument("N", "10000")] = 10_000
    """Circuits of a block; a condition has one to four blocks."""
    seed: Annotated[int, argument("N", "0")] = 0
    """Decides all circuits."""
    search: bool = False
    """Look for counterexamples by gradient in place of the survey."""
    device: Annotated[
        Literal["cpu", "cuda"] | None, argument("cpu|cuda", "cuda where there is one")
    ] = None
    """Where to compute."""
    out: Annotated[
        Path | None, argument("DIR", "runs/stability_survey or runs/counterexamples")
    ] = None
    """The folder of the run, new or empty."""
    resume: bool = False
    """Continue the survey in the folder."""


@dataclass(frozen=True)
class Block:
    """A part of the survey that one process does in one go."""

    condition: Condition
    number: int
    circuits: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        c = self.condition
        kind = c.weights.replace(" ", "-")
        cell = f"n{c.n}-{kind}-{c.singular_value:g}-z{c.input_norm:g}-s{c.semisaturation:g}"
        return f"{cell}-{self.number}.json"


def plan(sizes: Sequence[int], circuits: int, seed: int) -> list[Block]:
    """All blocks of a survey; what is drawn in one depends on nothing but itself and the seed."""
    blocks = []
    for n in sizes:
        for norm, sigma in SURROUNDINGS if n == MAIN_SIZE else SURROUNDINGS[:1]:
            for kind, weights in enumerate(WEIGHTS):
                for value, count in BLOCKS.items():
                    condition = Condition(n, weights, value, norm, sigma)
                    # Sizes other than the main one are cheaper to learn about with fewer circuits.
                    share = count if n == MAIN_SIZE else 1
                    for number in range(share):
                        own = [
                            seed,
                            n,
                            kind,
                            *(round(1000 * x) for x in (value, norm, sigma)),
                            number,
                        ]
                        blocks.append(Block(condition, number, circuits, _mix(own)))
    return blocks


def examine(block: Block, device: torch.device) -> dict[str, Any]:
    """Draws a block's circuits, searches them and counts the verdicts."""
    start = time.perf_counter()
    circuit = block.condition.draw(block.circuits, block.seed).to(device)
    verdict = classify(circuit, block.seed)
    counts = torch.bincount(verdict, minlength=len(Verdict)).tolist()
    without = (verdict != Verdict.STABLE).nonzero().flatten().tolist()
    return {
        "condition": dataclasses.asdict(block.condition),
        "seed": block.seed,
        "counts": {str(kind): counts[kind] for kind in Verdict},
        # Enough to draw them again: Condition(...).draw(circuits, seed), these rows.
        "without_stable_state": without[:20],
        "circuits": block.circuits,
        "seconds": time.perf_counter() - start,
    }


def survey(options: Options, state: PartialState) -> None:
    """Does what is not done yet of the survey, and reports all of it."""
    folder = options.out or Path("runs", "stability_survey")
    blocks = plan(options.sizes, options.circuits, options.seed)
    header = {
        "sizes": list(options.sizes),
        "circuits": options.circuits,
        "seed": options.seed,
        "blocks": len(blocks),
    }
    if state.is_main_process:
        _open(folder, header, options.resume)
    state.wait_for_everyone()
    mine = blocks[state.process_index :: state.num_processes]
    left = [block for block in mine if not (folder / block.name).exists()]
    start = time.perf_counter()
    for block in tqdm(left, unit="block", disable=None if state.is_main_process else True):
        write_json(folder / block.name, examine(block, state.device))
    state.wait_for_everyone()
    if state.is_main_process:
        records = [_read(folder / block.name) for block in blocks]
        _report(folder, records)
        total = sum(record["circuits"] for record in records)
        seconds = time.perf_counter() - start
        done = f"{len(left):,} of {len(mine):,} blocks of this process in {seconds:.0f} s"
        print(f"{total:,} circuits; {done}; counts and picture are in {folder}")
    state.wait_for_everyone()


def main(arguments: Sequence[str] | None = None) -> None:
    """Surveys or searches, as the command line says."""
    options = tyro.cli(
        tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options),
        args=arguments,
        description=__doc__,
    )
    _check(options)
    device = choose_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    if device.type == "cpu":
        # The last bits of a product depend on the number of threads, and a verdict may on these.
        torch.set_num_threads(1)
    if not options.search:
        survey(options, state)
    elif state.is_main_process:
        folder = options.out or Path("runs", "counterexamples")
        open_new_folder(folder)
        search_all(options.sizes, options.seed, folder / RESULTS)
    state.destroy_process_group()


def _check(options: Options) -> None:
    """Refuses numbers out of range and what a search would ignore."""
    check_range(options, {"circuits": (1, None), "seed": (0, None)})
    for size in options.sizes:
        if size < 1:
            raise ExampleError(f"--sizes is {size}; expected 1 at least")
    if not options.sizes or len(set(options.sizes)) < len(options.sizes):
        raise ExampleError("--sizes must be one or more numbers, each once")
    if options.search:
        refuse_given(options, {"resume"}, beside="--search")


def _open(folder: Path, header: Mapping[str, Any], resume: bool) -> None:
    """Makes the folder of a new survey, or checks that it holds the one to be continued."""
    if not resume:
        open_new_folder(folder)
        write_json(folder / HEADER, header)
        return
    found = _read(folder / HEADER)
    if found != header:
        raise ExampleError(f"--resume: {folder} holds the survey {found}; expected {dict(header)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExampleError(
            f"{path} cannot be read ({error}); expected a file of a survey"
        ) from error
    return content


def _report(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Adds up the blocks of each condition; writes the counts and the picture, prints the table."""
    totals: dict[Condition, dict[str, int]] = {}
    for record in records:
        total = totals.setdefault(Condition(**record["condition"]), {str(v): 0 for v in Verdict})
        for kind, count in record["counts"].items():
            total[kind] += count
    write_json(
        folder / RESULTS,
        {"conditions": [{**dataclasses.asdict(c), **counts} for c, counts in totals.items()]},
    )
    plot_survey(totals, folder / PICTURE)
    print(render_table(totals))


def _mix(numbers: Sequence[int]) -> int:
    """One seed from several numbers; equal ones give equal seeds on every machine."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number) % (2**61 - 1)
    return mixed


if __name__ == "__main__":
    sys.exit(run_example(main))
