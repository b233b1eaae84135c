"""Forward and backward of an ORGaNICs layer: this library, torchdeq's solvers, the authors' code.

Every contestant computes the same: from inputs ``(256, 40)`` the steady-state rates of a layer of
80 neurons of each type, float32, and the gradients of a randomly weighted sum of the rates by all
parameters and the input. Medians over rounds, in each of which every contestant is timed in turn;
on a GPU by events, and over so many calls in a row that a timing lasts 10 ms.

Two weight settings: as initialised (Wr = I), and trained (``--weights FILE``, by default the
shipped 80:80 model on codes of real images; without the file a stand-in with
Wr = (I + 0.3 G / sqrt(n)) scaled to largest singular value 1, on random codes).

Contestants:

- ``deq_organics``: the layer with its default options, and without the check that each steady
  state is stable, which no other contestant makes either.
- ``torchdeq``: its four solvers, with implicit gradients, on the circuit's own map
  ``y <- d + (1 - sqrt a) Wr y``, ``a <- c + W (y^2 a)``, tuned: the fastest settings with a
  residual of at most 1e-6 and with gradients as accurate as 1e-6, or as ours if ours are less
  accurate. They start at rest or, with trained weights, also at the closed form for Wr = I. At
  initialisation that start is the solution already; a row of its own shows what remains.
- ``torchdeq on the normalized map``: the same on this library's reduction to one equation,
  ``v <- v + d - y + (1 - s) Wr y`` with ``s = sqrt(c + W v^2)``, ``y = v / s``, but without its
  reference inverse: what the reduction brings by itself.
- ``published``: the authors' layer from ``--published DIR``, their repository's checkout, with the
  same weights, in training mode. It solves other equations than the paper's (``a`` in place of
  ``sqrt a``): its residual by Eq. 15 is large and its rates are different ones.

Printed: medians, ratio to ours, largest relative residual of the batch (both equations, evaluated
in float64) and relative error of the gradients (by the circuit's tensors, against float64). Also
the peak memory of forward and backward, with few and with many iterations.

A contestant that fails does not end the run: its error is printed and recorded, and the exit status
is 1. The figures are written after each part.

    python benchmarks/static_layer.py [--published DIR] [--device cuda] [--out static_layer.json]
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ
from harness.bars import Bar, bar_table
from harness.contestants import OURS, PUBLISHED, UNCHECKED, Field, enter
from harness.floor import Rates, floor_table, measure_rates, static_work
from harness.layer import initial_layer, synthetic_layer, trained_layer
from harness.memory import peak_bytes
from harness.output import table
from harness.peers import Reference, Tensors, circuit_tensors
from harness.race import Pace, race
from harness.report import Report
from harness.timing import clock_for

TARGET = 1e-6
BARRED_SIZE, BARRED_BATCH = 80, 256
BARRED_OVER_PUBLISHED, BARRED_OVER_TORCHDEQ = 50.0, 5.0
WEIGHTS = Path(__file__).parents[1] / "examples/weights/static_mnist/80-80.safetensors"


@dataclass(frozen=True)
class Options:
    hidden_size: int = 80
    batch: int = 256
    rounds: int = 30
    """Rounds of the race; slow contestants take part in fewer."""
    weights: Path = WEIGHTS
    """Trained weights, a safetensors file written by examples/static_mnist.py."""
    published: Path | None = None
    """Checkout of the authors' repository."""
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    normalized: bool = True
    """Also run torchdeq's solvers on the normalized map."""
    memory: bool = True
    """Also measure peak memory."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures; on a GPU benchmarks/results/static_layer-NAME.json if left out."""


def compare(field: Field, rates: Rates | None, options: Options, report: Report) -> None:
    """Tune, race and print all contestants with one set of weights."""
    label, layer, x, _ = field
    generator = torch.Generator().manual_seed(options.seed)
    weights = torch.randn(options.batch, options.hidden_size, generator=generator)
    weights = weights.to(options.device)
    with torch.no_grad():
        tensors = circuit_tensors(layer, x)
    clock = clock_for(options.device)
    contestants, unreached = enter(
        field,
        Reference(tensors, weights),
        TARGET,
        clock,
        lambda what, action: report.attempt(f"{label}: {what}", action),
        normalized=options.normalized,
        published_code=options.published,
    )
    contenders = [contestant.contender(weights) for contestant in contestants]
    pace = Pace(options.rounds)
    times = race(contenders, x, clock, pace, report.attempt, label, options.seed)
    figures = []
    for contestant in contestants:
        figure: dict[str, Any] = {
            "name": contestant.name,
            "setting": contestant.setting,
            "residual": contestant.residual,
            "gradient_error": contestant.gradient_error,
        }
        if contestant.name in times:
            timed = times[contestant.name]
            figure |= timed.record()
            if OURS in times:
                figure["ratio"] = timed.median_total / times[OURS].median_total
        figures.append(figure)
    result: dict[str, Any] = {"weights": label, "contestants": figures, "unreached": unreached}
    report.record.setdefault("results", []).append(result)
    report.add()
    print(f"\n{label}: n = {options.hidden_size}, batch {options.batch}, {options.rounds} rounds")
    print_comparison(figures, unreached)
    print(report.failed(label))
    if rates is not None:
        with torch.no_grad():
            iterations = int(layer.steady_state(x).iterations.max())
        work = static_work(options.hidden_size, options.batch, x.shape[-1], iterations)
        result["floor"] = {"iterations": iterations, **work.record(rates)}
        own = {"highest": 1e3 * times[OURS].median_total} if OURS in times else {}
        print(f"{iterations} iterations; {floor_table(work, rates, own)}")
    report.add()


def print_comparison(figures: list[dict[str, Any]], unreached: dict[str, float]) -> None:
    """The table, the settings, and the ratios that count."""
    columns = {
        "milliseconds": ".3f",
        "forward_milliseconds": ".3f",
        "rounds": "d",
        "ratio": ".1f",
        "residual": ".1e",
        "gradient_error": ".1e",
    }
    rows = [
        [
            figure["name"],
            *(
                "-" if figure.get(name) is None else format(figure[name], spec)
                for name, spec in columns.items()
            ),
        ]
        for figure in figures
    ]
    header = ["", "ms", "forward", "rounds", "ratio", "residual", "gradient error"]
    print(table(header, rows))
    for figure in figures:
        print(f"  {figure['name']}: {figure['setting']}")
    for name, best in unreached.items():
        print(f"  {name}: no setting reaches {TARGET:g}; its best residual is {best:.1e}")
    rival, theirs = ratio_of_torchdeq(figures), ratio_of(figures, PUBLISHED)
    if rival is not None:
        print(f"  the fastest of torchdeq's solvers takes {rival:.1f} times as long as ours")
    if theirs is not None:
        unchecked = ratio_of(figures, UNCHECKED)
        beside = "" if unchecked is None else f", {theirs / unchecked:.1f} times {UNCHECKED}"
        print(f"  the published layer takes {theirs:.1f} times as long as {OURS}{beside}")


def ratio_of(figures: list[dict[str, Any]], name: str) -> float | None:
    """A contestant's time over ours."""
    return next((figure.get("ratio") for figure in figures if figure["name"] == name), None)


def ratio_of_torchdeq(figures: list[dict[str, Any]]) -> float | None:
    """The time of the fastest of torchdeq's solvers, on the circuit's own map, over ours."""
    ratios = [
        figure["ratio"]
        for figure in figures
        # A name with more words has a suffix: another map, or a start at the solution.
        if figure["name"].startswith("torchdeq") and figure["name"].count(" ") == 1
        if "ratio" in figure
    ]
    return min(ratios, default=None)


def bars(results: list[dict[str, Any]], options: Options) -> list[Bar]:
    """What the layer has to reach on a GPU, at the size that the bars are set for."""
    at_bar = (options.hidden_size, options.batch) == (BARRED_SIZE, BARRED_BATCH)
    if not (at_bar and options.device == "cuda"):
        return []
    found = []
    for result in results:
        label, figures = result["weights"], result["contestants"]
        theirs, rival = ratio_of(figures, PUBLISHED), ratio_of_torchdeq(figures)
        residuals = [figure["residual"] for figure in figures if figure["name"] == OURS]
        found += [
            Bar(f"{label}: residual of ours", "at most", TARGET, max(residuals, default=None)),
            Bar(f"{label}: published over ours", "at least", BARRED_OVER_PUBLISHED, theirs),
            Bar(f"{label}: fastest torchdeq over ours", "at least", BARRED_OVER_TORCHDEQ, rival),
        ]
    return found


def memory(layer: ORGaNICsDEQ, x: Tensor, options: Options) -> list[dict[str, Any]]:
    """Peak memory of forward and backward in float64, with few and with many iterations.

    For Algorithm 1 the layer's circuits are made hard, so that it really uses 200 iterations: -Wr
    in place of Wr, and input drives scaled by factors from 0.01 to 4.
    """
    with torch.no_grad():
        easy = Tensors(*(part.double() for part in circuit_tensors(layer, x)))
        factors = torch.linspace(0.01, 4.0, len(easy.d)).to(easy.d).unsqueeze(-1)
        hard = easy._replace(d=factors * easy.d, wr=-easy.wr)

    rows, records = [], []
    for solver, tol, max_iter, tensors in (
        ("auto", 1e-3, 60, easy),
        ("auto", 1e-13, 60, easy),
        ("algorithm1", 1e-10, 10, hard),
        ("algorithm1", 1e-10, 200, hard),
    ):
        leaves = Tensors(*(part.detach().clone().requires_grad_() for part in tensors))
        iterations = 0

        def run(
            solver: str = solver,
            tol: float = tol,
            max_iter: int = max_iter,
            leaves: Tensors = leaves,
        ) -> None:
            nonlocal iterations
            circuit = Circuit(*leaves)
            state = circuit.steady_state(solver, tol, max_iter, on_failure="ignore")
            iterations = int(state.iterations.max())
            torch.autograd.grad(state.rates.sum(), leaves)

        run()
        peak = peak_bytes(run, options.device)
        rows.append([solver, f"{tol:g}", str(iterations), f"{peak / 2**20:.2f}"])
        records.append({"solver": solver, "tol": tol, "iterations": iterations, "peak_bytes": peak})
    print("\nPeak memory of forward and backward, float64, largest number of iterations in a batch")
    print(table(["solver", "tol", "iterations", "MiB"], rows))
    return records


def at_initialisation(options: Options) -> Field:
    """The weights that the layer starts from."""
    layer, x = initial_layer(options.hidden_size, options.batch, options.seed)
    return _on_device(Field("initial weights", layer, x, True), options)


def after_training(options: Options) -> Field:
    """Trained weights, or where there are none of that size, a stand-in."""
    if options.weights.is_file() and options.hidden_size == 80:
        label = "trained weights"
        layer, x = trained_layer(options.weights, options.batch)
    else:
        label = "stand-in for trained weights, Wr = (I + 0.3 G / sqrt(n)) / its norm"
        layer, x = synthetic_layer(options.hidden_size, options.batch, options.seed)
    return _on_device(Field(label, layer, x, False), options)


def _on_device(field: Field, options: Options) -> Field:
    device = options.device
    return field._replace(layer=field.layer.to(device), x=field.x.to(device).requires_grad_())


def main(options: Options) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    report = Report("static_layer", options)
    rates = report.attempt("rates of the device", lambda: measure_rates(options.device))
    report.add(rates=rates and vars(rates))
    for build in (at_initialisation, after_training):
        field = report.attempt(build.__name__, partial(build, options))
        if field is None:
            continue
        report.attempt(field.label, partial(compare, field, rates, options, report))
        if options.memory and not field.at_initialisation:
            measured = partial(memory, field.layer, field.x, options)
            report.add(memory=report.attempt("memory", measured))
    checked = bars(report.record.get("results", []), options)
    report.add(bars=[bar.record() for bar in checked])
    if checked:
        print(f"\n{bar_table(checked)}")
    return report.close()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
