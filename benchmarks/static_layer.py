"""Forward and backward of an ORGaNICs layer: this library, torchdeq's solvers, the authors' code.

Every contestant computes the same: from inputs ``(256, 40)`` the steady-state rates of a layer of
80 neurons of each type, float32, and the gradients of a randomly weighted sum of the rates by all
parameters and the input. In each round every contestant runs once, in random order and each after
an untimed run of its own (so that none pays for what its predecessor left in the caches and the
allocator); the medians are over rounds, so that a noisy machine slows all alike.

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

    python benchmarks/static_layer.py [--published DIR] [--device cuda] [--out static_layer.json]
"""

import copy
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _layer import initial_layer, synthetic_layer, trained_layer
from _memory import peak_bytes
from _output import machine, save_json, table
from _peers import Peer, Reference, Tensors, circuit_tensors, rates_of, tune
from torch import Tensor
from tqdm import tqdm

from deq_organics import Circuit, ORGaNICsDEQ

TARGET = 1e-6
UNCHECKED = "check_stability=False"
WEIGHTS = Path(__file__).parents[1] / "examples/weights/static_mnist/80-80.safetensors"


@dataclass(frozen=True)
class Options:
    hidden_size: int = 80
    batch: int = 256
    rounds: int = 30
    warm_up: int = 3
    weights: Path = WEIGHTS
    """Trained weights, a safetensors file written by examples/static_mnist.py."""
    published: Path | None = None
    """Checkout of the authors' repository."""
    device: str = "cpu"
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    normalized: bool = True
    """Also run torchdeq's solvers on the normalized map."""
    memory: bool = True
    """Also measure peak memory."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Contestant:
    """Something that computes rates from the input and is differentiated by its parameters."""

    name: str
    setting: str
    rates: Callable[[Tensor], Tensor]
    parameters: list[Tensor]
    residual: float
    gradient_error: float | None


def synchronizer(device: str) -> Callable[[], None]:
    """Waits for what was launched; nothing to wait for on a CPU."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def ours(layer: ORGaNICsDEQ, reference: Reference) -> list[Contestant]:
    accuracy = reference.library(layer.tol)
    setting = f"solver {layer.solver}, tol {layer.tol:g}"
    unchecked = copy.deepcopy(layer)
    unchecked.check_stability = False
    return [
        Contestant(name, setting, entry, list(entry.parameters()), *accuracy)
        for name, entry in (("deq_organics", layer), (f"deq_organics, {UNCHECKED}", unchecked))
    ]


def from_peer(peer: Peer, layer: ORGaNICsDEQ, reference: Reference, suffix: str) -> Contestant:
    solver = peer.build()
    accuracy = reference.measure(solver)

    def rates(x: Tensor) -> Tensor:
        return rates_of(solver(circuit_tensors(layer, x))[0])

    setting = f"{peer.setting} ({solver.iterations} iterations)"
    return Contestant(peer.name + suffix, setting, rates, list(layer.parameters()), *accuracy)


def published(path: Path, layer: ORGaNICsDEQ, x: Tensor, reference: Reference) -> Contestant:
    """The authors' layer with our layer's weights."""
    sys.path.insert(0, str(path))
    from models.fixed_point.ff import ff  # type: ignore[import-not-found]

    free: Any = layer.parametrizations
    net = ff(layer.input_size, layer.hidden_size, Wr_identity=False)
    with torch.no_grad():
        net.Wzx.copy_(layer.input_weight)
        net.Wbx.copy_(layer.gain_weight)
        net.b0.copy_(free.baseline_gain.original)
        net.log_Way.copy_(free.normalization_weight.original)
        net.Wr.parametrizations.weight.original.copy_(layer.recurrent_weight)
    net = net.to(x.device).train()
    with torch.no_grad():
        # Training mode runs power iterations: let them find the largest singular value.
        for _ in range(20):
            net(x)
        z = torch.nn.functional.linear(x, net.Wzx)
        z = z / z.norm(dim=1, keepdim=True)
        y, a = net.steady_state(x, net.B1(x), net.B0(), z)
    parameters = [part for part in net.parameters() if part.requires_grad]
    residual = reference.residual(y, a)
    setting = f"{net.num_iterations} iterations, other equations"
    return Contestant("published", setting, net, parameters, residual, None)


def race(
    contestants: list[Contestant], x: Tensor, weights: Tensor, options: Options, label: str
) -> list[tuple[float, float]]:
    """Median seconds of forward and of forward with backward, for each contestant."""
    synchronize = synchronizer(options.device)
    times: list[list[tuple[float, float]]] = [[] for _ in contestants]
    order = random.Random(options.seed)
    for number in tqdm(range(-options.warm_up, options.rounds), desc=label, unit="round"):
        for i in order.sample(range(len(contestants)), len(contestants)):
            contestant = contestants[i]
            for timed in (False, number >= 0):
                start = time.perf_counter()
                loss = (contestant.rates(x) * weights).sum()
                synchronize()
                middle = time.perf_counter()
                torch.autograd.grad(loss, [*contestant.parameters, x])
                synchronize()
                end = time.perf_counter()
                if timed:
                    times[i].append((middle - start, end - start))
    return [
        (statistics.median(t[0] for t in runs), statistics.median(t[1] for t in runs))
        for runs in times
    ]


def compare(
    label: str, layer: ORGaNICsDEQ, x: Tensor, identity: bool, options: Options
) -> dict[str, Any]:
    """Tune, race and print all contestants with one set of weights."""
    layer, x = layer.to(options.device), x.to(options.device).requires_grad_()
    generator = torch.Generator().manual_seed(options.seed)
    weights = torch.randn(options.batch, options.hidden_size, generator=generator)
    weights = weights.to(options.device)
    with torch.no_grad():
        tensors = circuit_tensors(layer, x)
    reference = Reference(tensors, weights)
    synchronize = synchronizer(options.device)
    contestants = ours(layer, reference)
    gradient_target = max(TARGET, contestants[0].gradient_error or 0.0)

    races: list[tuple[str, str, tuple[str, ...], tuple[str, ...] | None]] = [
        ("", "circuit", ("rest",) if identity else ("rest", "closed form"), None)
    ]
    if identity:
        races.append((" (at the solution)", "circuit", ("closed form",), ("fixed_point_iter",)))
    if options.normalized:
        races.append((" on the normalized map", "normalized", ("zero",), None))
    unreached: dict[str, float] = {}
    for suffix, map_name, starts, solvers in tqdm(races, desc=f"{label}: tuning", unit="map"):
        chosen = {} if solvers is None else {"solvers": solvers}
        peers, missed = tune(
            map_name, starts, reference, TARGET, gradient_target, synchronize, **chosen
        )
        contestants += [from_peer(peer, layer, reference, suffix) for peer in peers]
        unreached |= {f"torchdeq {name}{suffix}": best for name, best in missed.items()}
    if options.published is not None:
        contestants.append(published(options.published, layer, x, reference))

    medians = race(contestants, x, weights, options, label)
    own = medians[0][1]
    rows, results = [], []
    for contestant, (forward, total) in zip(contestants, medians, strict=True):
        error = contestant.gradient_error
        rows.append(
            [
                contestant.name,
                f"{1e3 * total:.2f}",
                f"{1e3 * forward:.2f}",
                f"{total / own:.1f}",
                f"{contestant.residual:.1e}",
                "-" if error is None else f"{error:.1e}",
            ]
        )
        results.append(
            {
                "name": contestant.name,
                "setting": contestant.setting,
                "milliseconds": 1e3 * total,
                "forward_milliseconds": 1e3 * forward,
                "ratio": total / own,
                "residual": contestant.residual,
                "gradient_error": error,
            }
        )
    header = ["", "ms", "forward", "ratio", "residual", "gradient error"]
    print(f"\n{label}: n = {options.hidden_size}, batch {options.batch}, {options.rounds} rounds")
    print(table(header, rows))
    for contestant in contestants:
        print(f"  {contestant.name}: {contestant.setting}")
    for name, best in unreached.items():
        print(f"  {name}: no setting reaches {TARGET:g}; its best residual is {best:.1e}")
    rivals = [
        result["ratio"]
        for result in results
        if result["name"].startswith("torchdeq") and result["name"].count(" ") == 1
    ]
    if rivals:
        print(f"  the fastest of torchdeq's solvers takes {min(rivals):.1f} times as long as ours")
    unchecked = medians[1][1]
    if options.published is not None:
        theirs = medians[-1][1]
        print(
            f"  the published layer takes {theirs / own:.1f} times as long as ours, "
            f"{theirs / unchecked:.1f} times with {UNCHECKED}"
        )
    return {"weights": label, "contestants": results, "unreached": unreached}


def memory(layer: ORGaNICsDEQ, x: Tensor, options: Options) -> list[dict[str, Any]]:
    """Peak memory of forward and backward in float64, with few and with many iterations.

    For Algorithm 1 the layer's circuits are made hard, so that it really uses 200 iterations: -Wr
    in place of Wr, and input drives scaled by factors from 0.01 to 4.
    """
    layer, x = layer.to(options.device), x.to(options.device)
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


def main(options: Options) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    size, batch, seed = options.hidden_size, options.batch, options.seed
    results = [compare("initial weights", *initial_layer(size, batch, seed), True, options)]
    if options.weights.is_file() and size == 80:
        label, (layer, x) = "trained weights", trained_layer(options.weights, batch)
    else:
        label = "stand-in for trained weights, Wr = (I + 0.3 G / sqrt(n)) / its norm"
        layer, x = synthetic_layer(size, batch, seed)
    results.append(compare(label, layer, x, False, options))
    record = {
        "benchmark": "static_layer",
        "machine": facts,
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(options).items()
            if key not in ("out", "published", "weights")
        },
        "results": results,
        "memory": memory(layer, x, options) if options.memory else None,
    }
    save_json(options.out, record)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
