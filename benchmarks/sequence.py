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
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from harness.accuracy import Errors, Probe, derivatives, errors, exact
from harness.bars import Bar, bar_table
from harness.floor import Rates, floor_table, measure_rates, sequence_work
from harness.memory import peak_bytes
from harness.output import table
from harness.race import Contender, Pace, race, run_step
from harness.report import Report
from harness.sequences import AUTO, LSTM, PUBLISHED, cuda_name, entries
from harness.timing import clock_for
from recurrent import ORGaNICsRNN

INPUT_SIZE = 1
GPU_STEPS, CPU_STEPS = 784, 98
BARRED_BATCH, BARRED_STEPS = 256, 784
BARRED_MILLISECONDS = {128: 8.0, 64: 4.5}
BARRED_OUTPUT_ERROR, BARRED_GRADIENT_ERROR = 1e-5, 1e-4
BARRED_SPEEDUP = 60.0
# On one thread of a CPU: our time over that of `fused`, of torch's LSTM and of the published cell.
BARRED_CPU_STEPS = (98, 784)
BARRED_CPU_RATIOS = {64: (0.42, 0.5, 0.22), 128: (0.55, 0.7, 0.4)}


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
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures; on a GPU benchmarks/results/sequence-NAME.json if left out."""

    @property
    def timed_steps(self) -> int:
        return self.steps or (GPU_STEPS if self.device == "cuda" else CPU_STEPS)


class Measurement:
    """The figures of one hidden size, added to the report part by part.

    Args:
        units: The hidden size.
        options: The command line.
        report: Gets the figures, and what failed.
    """

    def __init__(self, units: int, options: Options, report: Report) -> None:
        self.units, self.options, self.report = units, options, report
        self.label = f"{units} units"
        generator = torch.Generator().manual_seed(options.seed)
        weights = torch.randn(options.batch, units, generator=generator).to(options.device)
        self.entries = [
            entry
            for entry in entries(units, weights, options.published, options.seed)
            if entry.contender.name not in options.without
        ]
        self.figures: dict[str, dict[str, Any]] = {
            contender.name: {"setting": contender.setting} for contender, _ in self.entries
        }
        self.result: dict[str, Any] = {
            "units": units,
            "steps": options.timed_steps,
            "batch": options.batch,
            "contenders": self.figures,
        }
        report.record.setdefault("results", []).append(self.result)

    def run(self, rates: Rates | None) -> None:
        """Measure and print everything; contenders that cannot be timed are left at that."""
        for part in (self.time, self.compare_with_double, self.measure_memory):
            part()
            self.report.add()
        steps, batch, longer = (
            self.options.timed_steps,
            self.options.batch,
            self.options.memory_steps,
        )
        print(f"\n{self.label}, {steps} steps, batch {batch}; peak memory for {longer} steps")
        print(result_table(self.figures, steps))
        print(self.report.failed(self.label))
        if rates is not None:
            work = sequence_work(self.units, batch, steps, INPUT_SIZE)
            self.result["floor"] = work.record(rates)
            print(floor_table(work, rates, by_precision(self.figures)))
        self.report.add()

    def time(self) -> None:
        contenders = [entry.contender for entry in self.entries]
        x, clock = self._input(self.options.timed_steps), clock_for(self.options.device)
        pace, seed = Pace(self.options.rounds), self.options.seed
        times = race(contenders, x, clock, pace, self.report.attempt, self.label, seed)
        for name, timed in times.items():
            self.figures[name] |= timed.record()
            if AUTO in times:
                self.figures[name]["ratio"] = timed.median_total / times[AUTO].median_total
        self.entries = [entry for entry in self.entries if entry.contender.name in times]

    def compare_with_double(self) -> None:
        ours = [(contender, rnn) for contender, rnn in self.entries if rnn is not None]
        if not ours:
            return
        # Their parameters are the same.
        _, any_rnn = ours[0]
        steps, batch, seed = self.options.timed_steps, self.options.batch, self.options.seed
        probe = Probe.draw(any_rnn, steps, batch, seed + 1)
        truth = self.report.attempt(f"{self.label}: float64", partial(exact, any_rnn, probe))
        if truth is None:
            return

        def compare(contender: Contender, rnn: ORGaNICsRNN) -> Errors:
            with contender.mode():
                return errors(derivatives(rnn, probe), truth)

        for contender, rnn in ours:
            what = f"{self.label}: accuracy of {contender.name}"
            found = self.report.attempt(what, partial(compare, contender, rnn))
            if found is not None:
                name, worst = found.worst_gradient
                self.figures[contender.name] |= {
                    "output_error": found.outputs,
                    "gradient_error": worst,
                    "worst_gradient": name,
                    "gradient_errors": found.gradients,
                }

    def measure_memory(self) -> None:
        if not self.options.memory_steps:
            return
        x = self._input(self.options.memory_steps)

        def measure(contender: Contender) -> int:
            with contender.mode():
                return peak_bytes(lambda: run_step(contender.prepare(x)), self.options.device)

        for contender, _ in self.entries:
            what = f"{self.label}: memory of {contender.name}"
            peak = self.report.attempt(what, partial(measure, contender))
            self.figures[contender.name]["peak_bytes"] = peak

    def _input(self, steps: int) -> Tensor:
        """Uniform in (0, 1), ``(steps, B, 1)``."""
        generator = torch.Generator().manual_seed(self.options.seed)
        x = torch.rand(steps, self.options.batch, INPUT_SIZE, generator=generator)
        return x.to(self.options.device)


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
        on_thread = not on_gpu and torch.get_num_threads() == 1 and result["batch"] == BARRED_BATCH
        if on_thread and result["steps"] in BARRED_CPU_STEPS and units in BARRED_CPU_RATIOS:
            peers = ("fused", LSTM, PUBLISHED)
            for peer, limit in zip(peers, BARRED_CPU_RATIOS[units], strict=True):
                ratio = figures.get(peer, {}).get("ratio")
                name = f"{units} units, {result['steps']} steps: time over {peer}'s"
                found.append(Bar(name, "at most", limit, ratio and 1 / ratio))
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
        report.attempt(
            f"{units} units", lambda units=units: Measurement(units, options, report).run(rates)
        )
    checked = bars(report.record.get("results", []), options.device == "cuda")
    report.add(bars=[bar.record() for bar in checked])
    print(f"\n{bar_table(checked)}")
    return report.close()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
