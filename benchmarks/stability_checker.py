"""How fast is ``check_stability``, and does it agree with dense eigenvalues?

Circuits of 80 neurons of each type that share their weights, as a layer's do (Wr and W as in
``static_layer.py``'s stand-in for trained weights, inputs random), at their steady states, which
are solved for beforehand. Timed, block by block in random order: ``check_stability`` (verdict and
leading eigenvalue), the verdict alone, as a solve asks for it, and all eigenvalues of the dense
Jacobians by ``torch.linalg.eigvals`` in float64, the peer. Checked: the leading eigenvalue of a
subset against ``numpy.linalg.eigvals``.

    python benchmarks/stability_checker.py [--samples 10000] [--out stability_checker.json]
"""

import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from deq_organics import Circuit, SteadyState, check_stability
from deq_organics.stability.spectrum import is_stable
from harness.layer import synthetic_layer
from harness.output import machine, save_json


@dataclass(frozen=True)
class Options:
    samples: int = 10_000
    block: int = 1_000
    """Samples that are timed at once."""
    hidden_size: int = 80
    compared: int = 200
    """Samples whose leading eigenvalue is compared with numpy's."""
    threads: int | None = None
    """Threads of torch; its own default if left out."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


def main(options: Options) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    layer, inputs = synthetic_layer(options.hidden_size, options.samples, options.seed)
    layer, inputs = layer.double(), inputs.double()
    layer.tol = 1e-10
    with torch.no_grad():
        circuit = layer.circuit(inputs)
        state = circuit.steady_state(tol=layer.tol, on_failure="ignore")
    seconds = _race(circuit, state, options)
    report = check_stability(circuit, state)

    found = state.converged.nonzero().squeeze(-1)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(options.seed))
    rows = found[order[: options.compared]]
    with torch.no_grad():
        part = layer.circuit(inputs[rows])
        spectra = np.linalg.eigvals(part.jacobian(state.y[rows], state.a[rows]).numpy())
    reported = report.leading_eigenvalue[rows].numpy()
    real_error = np.abs(spectra.real.max(-1) - reported.real).max()
    # Of eigenvalues with almost equal real parts either may lead: compare with the nearest one.
    nearest = np.minimum(
        np.abs(spectra - reported[:, None]).min(-1),
        np.abs(spectra - reported.conj()[:, None]).min(-1),
    ).max()

    print(report)
    totals = {name: sum(laps) for name, laps in seconds.items()}
    dense = statistics.median(seconds["dense eigenvalues"])
    ratios = {name: statistics.median(laps) / dense for name, laps in seconds.items()}
    print(f"{options.samples:,} samples, n = {options.hidden_size}:")
    for name, total in totals.items():
        print(f"  {name}: {total:.2f} s, {ratios[name]:.2f} of dense eigenvalues (medians)")
    print(
        f"largest deviation from numpy on {len(rows)}: real part {real_error:.2e}, "
        f"eigenvalue {nearest:.2e}"
    )
    record = {
        "benchmark": "stability_checker",
        "machine": facts,
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "seconds": totals,
        "ratios_of_medians": ratios,
        "deviation_of_real_part": float(real_error),
        "deviation_of_eigenvalue": float(nearest),
        "stable_fraction": float(report.stable.double().mean()),
    }
    save_json(options.out, record)


def _check(circuit: Circuit, y: Tensor, a: Tensor) -> None:
    check_stability(circuit, (y, a))


def _prove(circuit: Circuit, y: Tensor, a: Tensor) -> None:
    is_stable(circuit.flatten(), y, a, torch.ones(len(y), dtype=torch.bool))


def _diagonalize(circuit: Circuit, y: Tensor, a: Tensor) -> None:
    torch.linalg.eigvals(circuit.jacobian(y, a))


CONTENDERS = {
    "verdict and leading eigenvalue": _check,
    "verdict alone": _prove,
    "dense eigenvalues": _diagonalize,
}


def _race(circuit: Circuit, state: SteadyState, options: Options) -> dict[str, list[float]]:
    """Seconds of every contender for every block of samples."""
    problem, order = circuit.flatten(), random.Random(options.seed)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for rows in torch.arange(options.samples).split(options.block):
        block = (Circuit(*problem.select(rows)), state.y[rows], state.a[rows])
        for name in order.sample(list(CONTENDERS), len(CONTENDERS)):
            start = time.perf_counter()
            CONTENDERS[name](*block)
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
