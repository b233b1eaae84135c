"""Do circuits by their equations alone give what the fast paths give, and is each verdict right?

1. 1,000 random `Circuit`s through the generic path against their fast path: states, leading
   eigenvalues, spectra and gradients.
2. 1,000 random circuits of each other kind: Jacobians against finite differences, and how the
   search for a steady state ended.
3. Random networks of two and three areas: the verdict on the whole against numpy's eigenvalues.

    python benchmarks/generic_circuits.py [--circuits 1000] [--networks 10000] [--seconds 300]
"""

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from deq_organics import (
    SSN,
    AmplifierCircuit,
    Circuit,
    Connection,
    FeedbackArea,
    Network,
    Status,
    WilsonCowan,
    check_stability,
    cross_spectrum,
    draw_circuits,
    find_steady_state,
)
from deq_organics.circuits.newton import Plain
from deq_organics.circuits.system import System
from harness.output import machine, save_json

__all__ = ["Bare", "compare", "judge_networks", "search_family"]

DOUBLE = torch.float64
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Options:
    circuits: int = 1000
    networks: int = 10_000
    seconds: float = 300.0
    """After so long no more networks are drawn."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


class Bare:
    """A `Circuit` of which only the equations are known."""

    parts = ("y", "a")

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit

    def rest(self) -> tuple[Tensor, Tensor]:
        return self.circuit.rest()

    def vector_field(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        known = self.circuit
        residual_y, residual_a = known.parameters.residual(y, a)
        return residual_y / known.tau_y, residual_a / known.tau_a


def _error(one: Tensor, other: Tensor) -> float:
    """The largest difference, each circuit's in units of its largest number."""
    size = other.abs().flatten(1).amax(-1).clamp(min=1e-300)
    return float(((one - other).abs().flatten(1).amax(-1) / size).max())


def compare(circuits: int, seed: int) -> dict[str, Any]:
    """Largest relative differences of the generic path from the fast one."""
    generator = torch.Generator().manual_seed(seed)
    worst = dict.fromkeys(("state", "eigenvalue", "spectrum", "gradient"), 0.0)
    counts = dict.fromkeys(
        ("circuits", "unsolved", "unsolved by both", "elsewhere", "verdicts that differ"), 0
    )
    for n in SIZES:
        known = draw_circuits(circuits // len(SIZES), n, generator=generator)
        tensors = [t.clone().requires_grad_() for t in known.parameters.tensors()][:4]
        circuit = Circuit(tensors[0], tensors[1], tensors[2], tensors[3])
        found = find_steady_state(Bare(circuit), tol=1e-12, on_failure="ignore")
        fast = circuit.steady_state(tol=1e-14, on_failure="ignore")
        same = torch.cat([fast.y, fast.a], -1)
        both = found.converged & fast.converged
        counts["circuits"] += both.numel()
        counts["unsolved"] += int((~found.converged).sum())
        counts["unsolved by both"] += int((~found.converged & ~fast.converged).sum())
        apart = (found.state - same).abs().amax(-1) > 1e-3 * same.abs().amax(-1)
        counts["elsewhere"] += int((both & apart).sum())
        rows = both & ~apart
        worst["state"] = max(worst["state"], _error(found.state[rows], same[rows]))
        weight = torch.randn(2 * n, generator=generator, dtype=DOUBLE)
        gradients = [
            torch.autograd.grad((state[rows] * weight).sum(), tensors)
            for state in (found.state, same)
        ]
        for mine, theirs in zip(*gradients, strict=True):
            worst["gradient"] = max(worst["gradient"], _error(mine[rows], theirs[rows]))
        with torch.no_grad():
            mine, theirs = check_stability(Bare(known), found), check_stability(known, fast)
            leading = [r.leading_eigenvalue[rows].unsqueeze(-1) for r in (mine, theirs)]
            worst["eigenvalue"] = max(worst["eigenvalue"], _error(*leading))
            counts["verdicts that differ"] += int((mine.stable != theirs.stable)[rows].sum())
            points = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
            density = [
                cross_spectrum(Bare(known), points, noise={"y": 1.0}).density[rows],
                cross_spectrum(known, points).density[rows],
            ]
            worst["spectrum"] = max(worst["spectrum"], _error(*density))
    return {**counts, **worst}


def _family(count: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def u(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=DOUBLE)

    recurrent = 2.0 * u(4, 4) - 1.0
    recurrent = recurrent / torch.linalg.matrix_norm(recurrent, 2, keepdim=True)
    return {
        "Wilson-Cowan": WilsonCowan(
            4 * u(4), 2 * u(3), 4 * u(4, 4), 4 * u(4, 3), 4 * u(3, 4), u(3, 3)
        ),
        "SSN": SSN(2 * u(4), u(3), u(7, 7) / 4),
        "amplifier": AmplifierCircuit(
            0.8 * u(4) - 0.4, 0.1 + 0.3 * u(4), None, u(4, 4) / 4, alpha=5 * u(1)
        ),
        "feedback": FeedbackArea(0.2 + u(4), recurrent, u(4, 4), feedback=u(4), alpha=10 * u(1)),
    }


def search_family(circuits: int, seed: int) -> dict[str, dict[str, Any]]:
    """How each kind's search ended, by status, and the largest error of a Jacobian, relative."""
    results: dict[str, dict[str, Any]] = {}
    for name, circuit in _family(circuits, seed).items():
        begun = time.perf_counter()
        found = find_steady_state(circuit, on_failure="ignore")
        system = System(circuit)
        state = torch.where(found.converged[:, None], found.state, system.rest + 0.1)
        jacobian, columns = system.jacobian(state), []
        for column in torch.eye(system.width, dtype=DOUBLE):
            ahead, behind = (system.field(state + step * column) for step in (1e-6, -1e-6))
            columns.append((ahead - behind) / 2e-6)
        slope = torch.linalg.vector_norm(system.field(found.state), dim=-1)
        residual = (slope / torch.linalg.vector_norm(jacobian, dim=(-2, -1)))[found.converged]
        results[name] = {
            **{kind.name: int((found.status == kind).sum()) for kind in Status},
            "largest |f| / |J|": float(residual.max()),
            "Jacobian": _error(jacobian, torch.stack(columns, -1)),
            "seconds": round(time.perf_counter() - begun, 1),
        }
    return results


def _network(count: int, areas: int, generator: torch.Generator) -> Network:
    known = {f"V{i}": draw_circuits(count, 2, generator=generator) for i in range(1, areas + 1)}
    links = []
    for i in range(1, areas):
        scale = torch.rand((), generator=generator, dtype=DOUBLE) * 3.0
        up, down = torch.rand(2, count, 2, 2, generator=generator, dtype=DOUBLE)
        links.append(Connection(f"V{i}", f"V{i + 1}", "drive", up))
        links.append(Connection(f"V{i + 1}", f"V{i}", "feedback", scale * down, signal="rectified"))
    links.append(Connection(f"V{areas}", "V1", "inhibitory", up, tau=2.0))
    return Network(known, links)


def judge_networks(networks: int, seconds: float, seed: int) -> dict[str, Any]:
    """Verdicts at fixed points, stable or not, against numpy's eigenvalues of the whole."""
    generator = torch.Generator().manual_seed(seed)
    counts = dict.fromkeys(("networks", "fixed points", "stable", "undecided", "wrong"), 0)
    begun, areas = time.perf_counter(), 2
    while counts["networks"] < networks and time.perf_counter() - begun < seconds:
        network = _network(500, areas, generator)
        areas = 5 - areas
        system = System(network)
        plain = Plain(system, 1e-9)
        everyone = torch.ones(plain.size, dtype=torch.bool)
        # Newton's method alone finds unstable fixed points, too.
        state = plain.polish(plain.rest, 40, everyone).state
        report = check_stability(network, system.split(state))
        jacobian = system.jacobian(state)
        # What numpy cannot decompose either is at no fixed point.
        jacobian = torch.where(report.rejected[:, None, None], 0.0, jacobian)
        jacobian = torch.where(report.margin.isnan()[:, None, None], 0.0, jacobian)
        spectra = np.linalg.eigvals(jacobian.numpy())
        largest = torch.from_numpy(spectra.real.max(-1))
        size = torch.from_numpy(np.abs(spectra).max(-1))
        judged = ~report.rejected & ~report.margin.isnan()
        sure = judged & (largest.abs() > 1e-9 * size)
        wrong = sure & ~report.undecided & (report.stable != (largest < 0))
        counts["networks"] += judged.numel()
        counts["fixed points"] += int(judged.sum())
        counts["stable"] += int(report.stable.sum())
        counts["undecided"] += int(report.undecided.sum())
        counts["wrong"] += int(wrong.sum())
    return counts


def main(options: Options) -> int:
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"machine": machine()}
    results["fast path"] = compare(options.circuits, options.seed)
    print(f"generic path against the fast one: {results['fast path']}", flush=True)
    results["networks"] = judge_networks(options.networks, options.seconds, options.seed)
    print(f"networks: {results['networks']}", flush=True)
    results["family"] = search_family(options.circuits, options.seed)
    for name, row in results["family"].items():
        print(f"{name}: {row}", flush=True)
    if options.out is not None:
        save_json(options.out, results)
    largest = max(results["fast path"][k] for k in ("state", "spectrum", "gradient"))
    return int(largest > 1e-9 or results["networks"]["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
