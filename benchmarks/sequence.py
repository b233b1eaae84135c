"""Time, memory and accuracy of training sequences: ours, the published cell's and torch's LSTM's.

    python benchmarks/sequence.py [--published DIR] [--device cuda] [--out sequence.json]

Timed are the forward and the backward pass of one training step: from inputs (T, B, 1) to a
randomly weighted sum of the last outputs and its gradients by all parameters. Medians over rounds,
in each of which every contender is timed in turn; on a GPU by events.

Contenders, each with float32 parameters:

- ``auto``: the backend that the library chooses; ``cuda, PRECISION``: its Triton kernels with
  products at each of ``torch.get_float32_matmul_precision()``'s values (GPU only); ``fused`` and
  ``reference``: the other backends; ``reference, CUDA graph``: without the host's time (GPU only).
- ``published``: the authors' cell from ``--published DIR``, their repository's checkout, in the
  loop and at the precision of their training script.
- ``nn.LSTM``, and on a GPU also with ``torch.backends.cudnn.allow_tf32 = False``.

Accuracy of ours: ``|out - ref| / |ref|`` of outputs and gradients for random inputs, initial states
and gradients of all outputs, against the reference backend in float64; printed are the worst output
and the worst gradient, recorded all gradients. Peak memory is the most that torch's allocator holds
during a step above what it held before (for a graph while it is captured).

A contender that fails does not end the run: its error is printed and recorded, and the exit status
is 1. The figures are written after each part.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from _accuracy import Errors, Probe, derivatives, errors, exact
from _bars import Bar, bar_table
from _floor import Rates, floor_table, measure_rates, sequence_work
from _memory import peak_bytes
from _output import table
from _race import Contender, Pace, race, run_step
from _report import Report
from _sequences import AUTO, LSTM, PUBLISHED, Entry, cuda_name, entries
from _timing import clock_for
from torch import Tensor

from recurrent import ORGaNICsRNN

INPUT_SIZE = 1
GPU_STEPS, CPU_STEPS = 784, 98
BARRED_BATCH, BARRED_STEPS = 256, 784
BARRED_MILLISECONDS = {128: 8.0, 64: 4.5}
BARRED_OUTPUT_ERROR, BARRED_GRADIENT_ERROR = 1e-5, 1e-4
BARRED_SPEEDUP = 60.0


@dataclass(frozen=True)
class Options:
    hidden_sizes: tuple[int, ...] = (128, 64)
    steps: int | None = None
    """Length of the sequences that are timed; 784 on a GPU, 98 on a CPU if left out."""
    batch: int = 256
    rounds: int = 30
    """Rounds of the race; slow contenders take part in fewer."""
    memory_steps: int = 784
    """Length of the sequences whose peak memory is measured; 0 leaves it out."""
    published: Path | None = None
    """Checkout of the authors' repository."""
    without: tuple[str, ...] = ()
    """Contenders to leave out: a kernel that breaks the device would end all that come after it."""
    device: str = "cpu"
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures; on a GPU benchmarks/results/sequence-NAME.json if left out."""

    @property
    def timed_steps(self) -> int:
        on_gpu = self.device.startswith("cuda")
        return self.steps or (GPU_STEPS if on_gpu else CPU_STEPS)


def measure(units: int, rates: Rates | None, options: Options, report: Report) -> None:
    """All figures of one hidden size: added to the report, and printed."""
    label, steps, batch = f"{units} units", options.timed_steps, options.batch
    generator = torch.Generator().manual_seed(options.seed)
    weights = torch.randn(batch, units, generator=generator).to(options.device)
    x = torch.rand(steps, batch, INPUT_SIZE, generator=generator).to(options.device)
    found = [
        entry
        for entry in entries(units, weights, options.published, options.seed)
        if entry.contender.name not in options.without
    ]
    contenders = [entry.contender for entry in found]
    figures: dict[str, dict[str, Any]] = {
        contender.name: {"setting": contender.setting} for contender in contenders
    }
    result = {"units": units, "steps": steps, "batch": batch, "contenders": figures}
    results = report.record.setdefault("results", [])
    results.append(result)

    pace = Pace(options.rounds)
    times = race(
        contenders, x, clock_for(options.device), pace, report.attempt, label, options.seed
    )
    for name, timed in times.items():
        figures[name] |= timed.record()
        if AUTO in times:
            figures[name]["ratio"] = timed.median_total / times[AUTO].median_total
    report.add()

    ran = [entry for entry in found if entry.contender.name in times]
    for name, error in accuracy(ran, label, options, report).items():
        figures[name] |= {"output_error": error.outputs, "gradient_errors": error.gradients}
        figures[name]["worst_gradient"], figures[name]["gradient_error"] = error.worst_gradient
    report.add()

    if options.memory_steps:
        long = torch.rand(options.memory_steps, batch, INPUT_SIZE, generator=generator)
        long = long.to(options.device)
        for contender, _ in ran:
            figures[contender.name]["peak_bytes"] = report.attempt(
                f"{label}: memory of {contender.name}",
                partial(peak_memory, contender, long, options.device),
            )
    print(f"\n{label}, {steps} steps, batch {batch}; peak memory for {options.memory_steps} steps")
    print(result_table(figures, steps))
    print(report.failed(label))
    if rates is not None:
        work = sequence_work(units, batch, steps, INPUT_SIZE)
        result["floor"] = work.record(rates)
        print(floor_table(work, rates, by_precision(figures)))
    report.add()


def accuracy(found: list[Entry], label: str, options: Options, report: Report) -> dict[str, Errors]:
    """Errors of ours, by name."""
    ours = {contender: rnn for contender, rnn in found if rnn is not None}
    if not ours:
        return {}
    # Their parameters are the same.
    rnn = next(iter(ours.values()))
    probe = Probe.draw(rnn, options.timed_steps, options.batch, options.seed + 1)
    truth = report.attempt(f"{label}: float64", partial(exact, rnn, probe))
    if truth is None:
        return {}

    def compare(contender: Contender, rnn: ORGaNICsRNN) -> Errors:
        with contender.mode():
            return errors(derivatives(rnn, probe), truth)

    compared = {
        contender.name: report.attempt(
            f"{label}: accuracy of {contender.name}", partial(compare, contender, rnn)
        )
        for contender, rnn in ours.items()
    }
    return {name: error for name, error in compared.items() if error is not None}


def peak_memory(contender: Contender, x: Tensor, device: str) -> int:
    """Peak memory of preparing a step and running it once."""
    with contender.mode():
        return peak_bytes(lambda: run_step(contender.prepare(x)), device)


def result_table(figures: dict[str, dict[str, Any]], steps: int) -> str:
    """One line per contender, and how they are set up."""
    rows = []
    for name, figure in figures.items():
        rows.append(
            [
                name,
                _cell(figure, "milliseconds", ".3f"),
                _cell(figure, "milliseconds", ".4f", 1 / steps),
                _cell(figure, "forward_milliseconds", ".3f"),
                _cell(figure, "rounds", "d"),
                _cell(figure, "ratio", ".2f"),
                _cell(figure, "peak_bytes", ".4g", 2**-20),
                _cell(figure, "output_error", ".1e"),
                _cell(figure, "gradient_error", ".1e"),
                figure.get("worst_gradient", "-"),
            ]
        )
    header = ["", "ms", "a step", "forward", "rounds", "ratio", "MiB", "outputs", "gradients", ""]
    settings = [
        f"  {name}: {figure['setting']}" for name, figure in figures.items() if figure["setting"]
    ]
    return "\n".join([table(header, rows), *settings])


def _cell(figure: dict[str, Any], key: str, spec: str, scale: float = 1) -> str:
    value = figure.get(key)
    return "-" if value is None else format(scale * value, spec)


def by_precision(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our milliseconds by precision of products."""
    names = {"highest": AUTO, "high": cuda_name("high"), "medium": cuda_name("medium")}
    return {
        precision: figures[name]["milliseconds"]
        for precision, name in names.items()
        if "milliseconds" in figures.get(name, {})
    }


def bars(results: list[dict[str, Any]], on_gpu: bool) -> list[Bar]:
    """What ``auto`` has to reach; times only at the size that they are set for, on a GPU."""
    found = []
    for result in results:
        units, figures = result["units"], result["contenders"]
        own = figures.get(AUTO, {})
        at_bar = (result["steps"], result["batch"]) == (BARRED_STEPS, BARRED_BATCH)
        if on_gpu and at_bar and units in BARRED_MILLISECONDS:
            limit = BARRED_MILLISECONDS[units]
            lstm = figures.get(LSTM, {}).get("ratio")
            published = figures.get(PUBLISHED, {}).get("ratio")
            found += [
                Bar(f"{units} units: ms", "at most", limit, own.get("milliseconds")),
                Bar(f"{units} units: time over {LSTM}'s", "at most", 1.0, lstm and 1 / lstm),
                Bar(f"{units} units: published over ours", "at least", BARRED_SPEEDUP, published),
            ]
        found += [
            Bar(
                f"{units} units: error of outputs",
                "at most",
                BARRED_OUTPUT_ERROR,
                own.get("output_error"),
            ),
            Bar(
                f"{units} units: error of the worst gradient",
                "at most",
                BARRED_GRADIENT_ERROR,
                own.get("gradient_error"),
            ),
        ]
    return found


def main(options: Options) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    report = Report("sequence", options)
    rates = report.attempt("rates of the device", lambda: measure_rates(options.device))
    report.add(rates=rates and vars(rates))
    for units in options.hidden_sizes:
        report.attempt(f"{units} units", partial(measure, units, rates, options, report))
    checked = bars(report.record.get("results", []), options.device.startswith("cuda"))
    report.add(bars=[bar.record() for bar in checked])
    print(f"\n{bar_table(checked)}")
    return report.close()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
