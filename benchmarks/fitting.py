"""How well circuits are recovered from noisy responses: `python benchmarks/fitting.py`.

A ring of 36 orientation-tuned neurons with recurrent weights answers gratings of eight contrasts.
From responses with Gaussian noise five parameters are fitted: the semisaturation sigma, the width
of the normalization pool over orientations, the exponent, the input gain b and the response gain.
Where the standard errors are right, some 95 % of the estimates lie within two of them of the truth.
A second experiment draws the search over a border beyond which circuits have no steady state.
"""

import argparse
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deq_organics import Circuit
from deq_organics.fitting import Fit, FitParameter, Responses, fit

NEURONS = 36
TRUTH = {"sigma": 0.2, "width": 35.0, "exponent": 2.2, "input_gain": 0.8, "response_gain": 40.0}
STARTS = {
    "sigma": FitParameter(0.4, low=0.0),
    "width": FitParameter(20.0, low=2.0, high=200.0),
    "exponent": FitParameter(2.0, low=1.0, high=8.0),
    "input_gain": FitParameter(0.5, low=0.0),
    "response_gain": FitParameter(20.0, low=0.0),
}
NOISE = 0.5
CONTRASTS = torch.logspace(-1.5, 0, 8, dtype=torch.float64)
PREFERRED = torch.arange(NEURONS, dtype=torch.float64) * 180 / NEURONS - 90
DIFFERENCE = PREFERRED[:, None] - PREFERRED


def tuning(difference: Tensor, width: Tensor | float) -> Tensor:
    """1 at a difference of 0, about exp(-1/2) at `width`; in degrees, of period 180."""
    slope = (180.0 / math.pi / width) ** 2 / 4.0
    return torch.exp(slope * (torch.cos(torch.deg2rad(2.0 * difference)) - 1.0))


def ring(parameters: Mapping[str, Tensor]) -> Circuit:
    """One circuit for each contrast of a grating at 0 degrees."""
    excitation = tuning(DIFFERENCE, 25.0)
    pool = tuning(DIFFERENCE, parameters["width"])
    return Circuit.from_gains(
        CONTRASTS[:, None] * tuning(PREFERRED, 30.0),
        parameters["input_gain"],
        0.5,
        parameters["sigma"],
        0.8 * excitation / excitation.sum(-1, keepdim=True),
        pool / pool.sum(-1, keepdim=True),
        exponent=parameters["exponent"],
    )


def measured(seed: int, noise: float = NOISE) -> Tensor:
    """Responses `(contrasts, neurons)` in spikes per second, with noise."""
    truth = {name: torch.tensor(value, dtype=torch.float64) for name, value in TRUTH.items()}
    rates = truth["response_gain"] * ring(truth).steady_state(tol=1e-12).rates
    generator = torch.Generator().manual_seed(seed)
    return rates + noise * torch.randn(rates.shape, generator=generator, dtype=torch.float64)


def recover(seed: int) -> Fit:
    """The fit to the responses of one seed; the noise is estimated too."""
    data = Responses(measured(seed), read_out=lambda state, p: p["response_gain"] * state.rates)
    return fit(ring, STARTS, data)


def beyond_the_border() -> Fit:
    """A search whose steps lead to where there is no steady state.

    This circuit of one neuron has none for drives above 0.707, where its response turns vertical:
    steps towards the truth, just below, are too long.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    drive = torch.linspace(0.2, 1.0, 5, dtype=torch.float64)[:, None]

    def build(parameters: Mapping[str, Tensor]) -> Circuit:
        return Circuit(parameters["size"] * drive, 0.5, -one, one)

    truth = build({"size": torch.tensor(0.7, dtype=torch.float64)})
    rates = truth.steady_state(tol=1e-12).rates
    return fit(build, {"size": 0.3}, Responses(rates, noise=1e-3))


def main() -> None:
    """Print the estimates of every seed, and how many lie within two standard errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    inside = dict.fromkeys(TRUTH, 0)
    converged = 0
    for seed in range(seeds):
        found = recover(seed)
        converged += found.converged
        told = []
        for name, value in TRUTH.items():
            estimate, error = float(found.estimates[name]), float(found.standard_errors[name])
            inside[name] += abs(estimate - value) <= 2 * error
            told.append(f"{name} {estimate:.4g} +- {error:.2g}")
        print(f"seed {seed}: {'; '.join(told)}; {found.evaluations} points", flush=True)
    print(f"converged: {converged} of {seeds}")
    for name, count in inside.items():
        print(f"  {name} = {TRUTH[name]:g}: within two standard errors in {count} of {seeds}")
    total, expected = sum(inside.values()), math.erf(math.sqrt(2.0))
    print(f"all: {total} of {seeds * len(TRUTH)} ({100 * expected:.0f} % expected)")
    print(beyond_the_border())


if __name__ == "__main__":
    main()
