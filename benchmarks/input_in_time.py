"""How exact is ``simulate`` with input that changes in time, against scipy's Radau?

Random circuits (main and rectified, exponents 1.5, 2 and 3, a third of them stiff) under three
kinds of input: steps that are switched at random times, modulated input with a modulated
semisaturation, and gains that obey Eq. 17. The reference integrates equations of its own, in numpy,
from switch to switch (``rtol=1e-10``). Checked beside the error: whether it is the same in a batch
and alone, and that the same circuits diverge.

    python benchmarks/input_in_time.py [--circuits 200] [--out input_in_time.json]
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from scipy.integrate import solve_ivp
from torch import Tensor

from deq_organics import Circuit, DynamicGain, InputGains, Trajectory, simulate
from harness.output import machine, save_json, table

Array = npt.NDArray[np.float64]
KINDS = ("switching", "modulated", "gains")
MODELS = [(2.0, False), (2.0, True), (1.5, False), (3.0, True)]
TIMES = torch.linspace(0, 3, 7, dtype=torch.float64)


@dataclass(frozen=True)
class Options:
    circuits: int = 200
    together: int = 20
    """Circuits of a batch."""
    rtol: float = 1e-8
    method: str = "rodas5p"
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


class Draw(NamedTuple):
    """A batch of circuits and their input, as tensors with one row a circuit."""

    kind: str
    exponent: float
    rectified: bool
    values: dict[str, Tensor]


def draw(kind: str, size: int, seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    n = 2 + seed % 3
    exponent, rectified = MODELS[seed % len(MODELS)]

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        numbers = torch.rand(size, *shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * numbers

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator, dtype=torch.float64)

    wr = gaussian(n, n)
    z = gaussian(n)
    z = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    fastest = -2.0 if seed % 3 == 0 else -0.5
    values = {
        "z": z.abs() if rectified else z,
        "sigma": uniform(n, low=0.2),
        "wr": wr / torch.linalg.matrix_norm(wr, 2, keepdim=True),
        "w": uniform(n, n),
        "tau_y": 10 ** uniform(n, low=fastest, high=0.5),
        "tau_a": 10 ** uniform(n, low=fastest, high=0.5),
        "on": uniform(1, low=0.2, high=0.8),
        "off": uniform(1, low=1.0, high=1.6),
        "again": uniform(1, low=1.8, high=2.8),
        "speed": uniform(1, low=0.5, high=4.0),
        "phase": uniform(n, high=6.0),
        "bx": gaussian(n, n),
        "by": gaussian(n, n),
        "ba": gaussian(n, n),
        "b0x": gaussian(n, n),
        "b0y": gaussian(n, n),
        "b0a": gaussian(n, n),
        "tau_b": 10 ** uniform(n, low=-0.5, high=0.5),
        "tau_b0": 10 ** uniform(n, low=-0.5, high=0.5),
    }
    return Draw(kind, exponent, rectified, values)


def simulated(given: Draw, times: Tensor = TIMES, **options: Any) -> Trajectory:
    """By the library."""
    v, m = given.values, given.exponent
    switches = torch.cat([v["on"], v["off"], v["again"]], -1)
    circuit = Circuit(
        v["z"], v["sigma"] ** m, v["wr"], v["w"], v["tau_y"], v["tau_a"], m, given.rectified
    )

    def switched(t: Tensor) -> Tensor:
        shown = ((t >= v["on"]) & (t < v["off"])) | (t >= v["again"])
        return torch.where(shown, v["z"], 0.0)

    def modulated(t: Tensor) -> Tensor:
        return v["z"] * (1.0 + 0.8 * torch.sin(v["speed"] * t + v["phase"]))

    def level(t: Tensor) -> Tensor:
        return (v["sigma"] * (1.0 + 0.3 * torch.cos(v["speed"] * t))) ** m

    if given.kind == "switching":
        return simulate(circuit, times, input_drive=switched, jumps=switches, **options)
    if given.kind == "modulated":
        return simulate(circuit, times, input_drive=modulated, inhibitory_drive=level, **options)
    gains = InputGains(
        switched,
        v["sigma"],
        DynamicGain(v["bx"], v["by"], v["ba"], v["tau_b"], 0.5),
        DynamicGain(v["b0x"], v["b0y"], v["b0a"], v["tau_b0"], 0.7),
        x=modulated,
    )
    return simulate(circuit, times, gains=gains, jumps=switches, **options)


def reference(given: Draw, row: int, times: Array) -> Array:
    """``(T, k)`` by scipy, from one switch to the next; NaN from where it diverges."""
    v = {name: value[row].numpy() for name, value in given.values.items()}
    m, rectified, n = given.exponent, given.rectified, len(v["z"])
    switches = [float(v[name][0]) for name in ("on", "off", "again")]

    def modulated(t: float) -> Array:
        return v["z"] * (1 + 0.8 * np.sin(v["speed"] * t + v["phase"]))

    def field(t: float, state: Array, shown: bool) -> Array:
        y, a = state[:n], state[n : 2 * n]
        z, c = v["z"] * shown, v["sigma"] ** m
        more: list[Array] = []
        if given.kind == "modulated":
            z, c = modulated(t), (v["sigma"] * (1 + 0.3 * np.cos(v["speed"] * t))) ** m
        if given.kind == "gains":
            b, b0 = state[2 * n : 3 * n], state[3 * n :]
            x = modulated(t)
            to_b = v["bx"] @ x + v["by"] @ y + v["ba"] @ a
            to_b0 = v["b0x"] @ x + v["b0y"] @ y + v["b0a"] @ a
            more = [
                (1 / (1 + np.exp(-to_b)) - b) / v["tau_b"],
                (1 / (1 + np.exp(-to_b0)) - b0) / v["tau_b0"],
            ]
            z, c = b * z, (b0 * v["sigma"]) ** m
        active = np.maximum(y, 0) if rectified else y
        up = np.maximum(a, 0)
        dy = (-y + z + (1 - up ** (1 / m)) * (v["wr"] @ active)) / v["tau_y"]
        da = (-a + c + v["w"] @ (np.abs(active) ** m * up)) / v["tau_a"]
        return np.concatenate([dy, da, *more])

    first = v["sigma"] ** m
    if given.kind == "modulated":
        first = (1.3 * v["sigma"]) ** m
    state = np.concatenate([np.zeros(n), first])
    if given.kind == "gains":
        first = (0.7 * v["sigma"]) ** m
        state = np.concatenate([np.zeros(n), first, np.full(n, 0.5), np.full(n, 0.7)])
    found = np.full((len(times), len(state)), np.nan)
    ends = [times[0], *switches, times[-1]]
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        inside = (times >= begin) & (times <= end)
        solved = solve_ivp(
            field,
            (begin, end),
            state,
            "Radau",
            args=(number % 2 == 1,),
            t_eval=np.unique([*times[inside], end]),
            rtol=1e-10,
            atol=1e-13,
        )
        if not solved.success:
            break
        found[inside] = solved.y.T[: inside.sum()]
        state = solved.y[:, -1]
    return found


def errors(given: Draw, trajectory: Trajectory) -> Array:
    """Each circuit's largest error, in units of the largest magnitude of that component.

    NaN where both diverge, infinite where only one does.
    """
    parts = [*trajectory, *(part for part in (trajectory.b, trajectory.b0) if part is not None)]
    states = torch.cat(parts, -1).detach().numpy()
    worst = []
    for row in range(states.shape[1]):
        expected = reference(given, row, trajectory.t.double().numpy())
        lost = np.isnan(expected[-1]).any(), np.isnan(states[-1, row]).any()
        if any(lost):
            worst.append(np.nan if all(lost) else np.inf)
            continue
        size = np.abs(expected).max(0) + 1e-12
        worst.append((np.abs(states[:, row] - expected) / size).max())
    return np.array(worst)


def alone(given: Draw, row: int) -> Draw:
    return given._replace(values={name: v[row : row + 1] for name, v in given.values.items()})


def batches(options: Options) -> Iterator[Draw]:
    for number in range(-(-options.circuits // options.together)):
        left = options.circuits - number * options.together
        size = min(options.together, left)
        yield draw(KINDS[number % len(KINDS)], size, options.seed + number // len(KINDS))


def main(options: Options) -> None:
    torch.set_num_threads(1)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    apart: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for given in batches(options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What diverges is counted.
            together = simulated(given, method=options.method, rtol=options.rtol)
            one = simulated(alone(given, 0), method=options.method, rtol=options.rtol)
            found[given.kind] += errors(given, together).tolist()
        difference = torch.cat([*one], -1)[:, 0] - torch.cat([*together], -1)[:, 0]
        apart[given.kind].append(float(difference.abs().nan_to_num().max()))
        print(f"{given.kind}: {np.nanmax(found[given.kind]):.1e}", flush=True)
    rows = []
    for kind in KINDS:
        values = np.array(found[kind])
        lost = int(np.isnan(values).sum())
        worst = f"{np.nanmax(values):.1e}" if lost < len(values) else "-"
        rows.append(
            [kind, str(len(values)), str(lost), worst, f"{max(apart[kind], default=0):.1e}"]
        )
    header = ["input", "circuits", "diverge in both", "largest error", "batch against alone"]
    print(table(header, rows))
    save_json(
        options.out,
        {
            "benchmark": "input_in_time",
            "machine": facts,
            "options": {**asdict(options), "out": str(options.out)},
            "errors": found,
            "batch_against_alone": apart,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
