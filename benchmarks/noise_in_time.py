"""Do trials of a noisy circuit have the theory's variances, correlations, powers and coherences?

A ring of neurons tuned to orientation, at its steady state, with white, Ornstein-Uhlenbeck, partly
shared and multiplicative noise in its input drive. From all trials are estimated: the variance of
each potential, the correlation of each two, and in every frequency bin, up to half of the sampling
rate, the power of each and the coherence of each two. They are compared with the theory of
continuous time (`stationary_covariance`, and `theory_spectrum`, which knows of sampling and the
window), in bands that hold all of a noise's comparisons together with 99.9 %. Then each parameter
of the noise is 10 % larger in the theory: does some band notice? For the correlation times of
partly shared noise 1,000 trials are too few to do so with every seed; 4,000 noticed them.

The bias of the step is that of white noise in any power, by the scheme's own linear statistics; the
narrowest band of 1,000 trials reaches 15 % to each side. No estimate of a coherence is below 0:
that of one close to 0 may come close to the lower end of its band, and never leaves it there.

    python benchmarks/noise_in_time.py [--trials 1000] [--out noise_in_time.json]
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from deq_organics import Circuit, Noise, Trials, simulate_noise
from deq_organics.trials.spectra import Segments, expected_density
from harness.bands import (
    Array,
    coherence_deviations,
    degrees_of_freedom,
    mean_deviations,
    power_deviations,
)
from harness.output import machine, save_json, table

DOUBLE = torch.float64
QUANTITIES = ("variance", "correlation", "power", "coherence")


@dataclass(frozen=True)
class Options:
    trials: int = 1000
    n: int = 36
    samples: int = 128
    """Kept states of a trial."""
    spacing: float = 2.0
    """Of these, in milliseconds."""
    dt: float = 0.2
    """Longest step, in milliseconds. Steps that are a quarter of the spacing take 5 % of the power
    at half of the sampling rate away, steps of a tenth 0.8 %."""
    burn_in: float = 80.0
    """In milliseconds; the slowest mode's time is 31."""
    error: float = 1e-3
    """Of all bands of a noise together."""
    wrong: float = 1.1
    """Factor of a parameter that the bands have to reject."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the figures."""


NOISES = {
    "white": [Noise(2e-3, "input_drive")],
    "Ornstein-Uhlenbeck": [Noise(2e-3, "input_drive", tau=10.0)],
    "shared": [
        Noise(1e-3, "input_drive", tau=10.0, shared=True),
        Noise(1e-3, "input_drive", tau=5.0),
    ],
    "multiplicative": [Noise(4e-3, "input_drive", tau=2.0, multiplicative=True)],
}


def ring(n: int) -> Circuit:
    """Neurons that prefer ``n`` orientations; a grating of half contrast. Times in ms."""
    preferred = torch.arange(n, dtype=DOUBLE) * math.pi / n
    drive = torch.exp(1.2 * (torch.cos(2 * (preferred - preferred[n // 2])) - 1))
    similar = torch.exp(4.0 * (torch.cos(2 * (preferred[:, None] - preferred)) - 1))
    similar = similar - similar.mean()
    recurrent = similar / torch.linalg.matrix_norm(similar, 2)
    pool = torch.exp(0.8 * (torch.cos(2 * (preferred[:, None] - preferred)) - 1))
    pool = pool / (pool @ drive.square()).max()
    return Circuit(0.25 * drive, 0.05**2, recurrent, pool, tau_y=4.0, tau_a=4.0)


class Estimates(NamedTuple):
    """What the trials say."""

    moments: Array
    """Each trial's products of deviations, averaged over the time, ``(R, k, k)``."""
    density: Array
    """``(F, k, k)``."""


def estimate(trials: Trials) -> Estimates:
    state = torch.cat([trials.y, trials.a], -1)
    state = state - state.mean(0)
    moments = state.mT @ state / state.shape[1] * (len(trials) / (len(trials) - 1))
    return Estimates(moments.numpy(), trials.spectrum().density.numpy())


def deviations(found: Estimates, theory: Trials, level: float) -> dict[str, float]:
    """Each quantity's largest deviation from a theory, in half-widths of its band."""
    covariance = theory.theory_covariance().numpy()
    density = theory.theory_spectrum().density.numpy()
    share, (first, second) = level / len(QUANTITIES), np.triu_indices(len(covariance), 1)
    variance = np.diagonal(covariance)
    own = np.einsum("rii->ri", found.moments)
    values = {"variance": mean_deviations(own, variance, share)}
    # By the correlations' first-order dependence on each trial's products, in Fisher's scale.
    mean = found.moments.mean(0)
    size = np.sqrt(np.diagonal(mean))
    unit = found.moments / size[:, None] / size
    pairs, powers = unit[:, first, second], np.einsum("rii->ri", unit)
    r = pairs.mean(0)
    influence = pairs - r - 0.5 * r * (powers[:, first] + powers[:, second] - 2.0)
    expected = (covariance / np.sqrt(np.outer(variance, variance)))[first, second]
    z, goal = np.arctanh(r), np.arctanh(expected)
    values["correlation"] = mean_deviations(z + influence / (1.0 - r**2), goal, share)
    smooth = theory.theory_spectrum(sampled=False).power.numpy()
    freedom, real = degrees_of_freedom(smooth, len(theory.t), len(theory))
    power, goal = (np.einsum("fii->fi", d).real for d in (found.density, density))
    values["power"] = power_deviations(power, goal, freedom, share)
    coherence, goal = (_coherence(d)[:, first, second] for d in (found.density, density))
    values["coherence"] = coherence_deviations(coherence, goal, freedom, real, share)
    worst = {name: float(np.max(value)) for name, value in values.items()}
    for name in ("power", "coherence"):
        bins = values[name].max(1)
        worst[f"{name}, but for the ends"] = float(bins[2:-2].max())
    return worst


def _coherence(density: Array) -> Array:
    power = np.einsum("fii->fi", density).real
    return np.abs(density) ** 2 / power[:, :, None] / power[:, None, :]


def wrong_theories(trials: Trials, factor: float) -> Iterator[tuple[str, Trials]]:
    """The trials with one parameter of their noise changed, which changes their theory alone."""
    for index, noise in enumerate(trials.noise):
        changes: dict[str, Any] = {"strength": factor * noise.strength}
        if noise.tau is not None:
            changes["tau"] = factor * noise.tau
        for name, value in changes.items():
            changed = list(trials.noise)
            changed[index] = replace(noise, **{name: value})
            yield f"noise[{index}].{name}", replace(trials, noise=tuple(changed))


def bias_of_step(trials: Trials) -> float:
    """Largest relative error of a power by the scheme's own linear statistics, white noise."""
    circuit = trials.circuit
    spacing = float(trials.t[1] - trials.t[0])
    steps = math.ceil(spacing / trials.dt - 1e-9)
    h = spacing / steps
    state = circuit.steady_state(tol=1e-12)
    jacobian = circuit.jacobian(state.y, state.a)
    identity = torch.eye(len(jacobian), dtype=DOUBLE)
    step = identity + h * jacobian + 0.5 * h**2 * jacobian @ jacobian
    kick = (identity + 0.5 * h * jacobian)[:, : circuit.n] * math.sqrt(h)
    total, power = kick @ kick.mT, step
    for _ in range(40):
        total, power = total + power @ total @ power.mT, power @ power
    move = torch.linalg.matrix_power(step, steps)
    lags = itertools.accumulate(itertools.repeat(move), lambda now, by: by @ now, initial=total)
    size = len(trials.t)
    found = expected_density(lags, Segments(size, spacing, size, 0, "hann"))
    exact = replace(trials, noise=(Noise(1.0),)).theory_spectrum().power
    return float((found.diagonal(dim1=-2, dim2=-1).real / exact - 1).abs().max())


def measure(name: str, options: Options) -> dict[str, Any]:
    times = options.spacing * torch.arange(options.samples, dtype=DOUBLE)
    began = time.perf_counter()
    trials = simulate_noise(
        ring(options.n),
        times,
        noise=NOISES[name],
        dt=options.dt,
        trials=options.trials,
        seed=options.seed,
        burn_in=options.burn_in,
        on_failure="error",
    )
    seconds = time.perf_counter() - began
    found = estimate(trials)
    return {
        "noise": name,
        "deviations": deviations(found, trials, options.error),
        "wrong": {
            parameter: deviations(found, theory, options.error)
            for parameter, theory in wrong_theories(trials, options.wrong)
        },
        "bias_of_step": bias_of_step(trials),
        "seconds": seconds,
    }


def main(options: Options) -> None:
    torch.set_num_threads(1)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    results = []
    for name in NOISES:
        results.append(measure(name, options))
        print(f"{name}: {results[-1]['deviations']}", flush=True)
    rows = [
        [
            result["noise"],
            *(f"{result['deviations'][quantity]:.2f}" for quantity in QUANTITIES),
            f"{min(max(values.values()) for values in result['wrong'].values()):.2f}",
            f"{result['bias_of_step']:.1e}",
            f"{result['seconds']:.0f}",
        ]
        for result in results
    ]
    print("Largest deviations in half-widths of the simultaneous bands; above 1 is outside.")
    print(table(["noise", *QUANTITIES, "least wrong", "step's bias", "s"], rows))
    inside = all(max(result["deviations"].values()) < 1 for result in results)
    rejected = all(
        max(values.values()) > 1 for result in results for values in result["wrong"].values()
    )
    print(f"all inside: {inside}; every parameter that is off is rejected: {rejected}")
    save_json(
        options.out,
        {
            "benchmark": "noise_in_time",
            "machine": facts,
            "options": {**asdict(options), "out": str(options.out)},
            "results": results,
            "inside": inside,
            "rejected": rejected,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
