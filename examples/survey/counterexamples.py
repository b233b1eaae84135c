"""Looks for circuits without a stable steady state by gradient, under added conditions."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deq_organics import Circuit, Status
from deq_organics.problem import Problem
from deq_organics.steady_state.methods.newton import solve_newton
from program.files import write_json
from survey.verdicts import Verdict, classify

CANDIDATES, STEPS, LEARNING_RATE = 100, 200, 0.05
TOL, NEWTON_STEPS = 1e-9, 30
# The circuit's tensors; what follows them are options.
ARGUMENTS = Problem._fields[:-2]
# The smallest eigenvalue of what is called positive definite.
DEFINITE = 0.05
# Time constants lie between this and its inverse.
SLOWEST = 10.0

Raw = Mapping[str, Tensor]


def _scaled(matrix: Tensor) -> Tensor:
    """The matrix with a largest singular value of 1."""
    return matrix / torch.linalg.matrix_norm(matrix, 2, keepdim=True)


def _rotated(raw: Raw) -> Tensor:
    """A symmetric matrix with eigenvalues from `DEFINITE` to 1, the largest of them 1."""
    skew = raw["wr"] - raw["wr"].mT
    rotation = torch.linalg.matrix_exp(skew)
    eigenvalues = DEFINITE + (1 - DEFINITE) * raw["eigenvalues"].sigmoid()
    eigenvalues = eigenvalues / eigenvalues.amax(-1, keepdim=True)
    return (rotation * eigenvalues.unsqueeze(-2)) @ rotation.mT


def _accretive(raw: Raw) -> Tensor:
    """A matrix whose symmetric part is positive definite; it need not be symmetric."""
    skew = raw["mix"] - raw["mix"].mT
    return _scaled(_rotated(raw) + skew)


def _signed(raw: Raw) -> Tensor:
    """`z` with a norm of 1 at most."""
    z = raw["z"]
    return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(1.0)


def _nonnegative(raw: Raw) -> Tensor:
    return _signed(raw).abs()


WEIGHTS: dict[str, Callable[[Raw], Tensor]] = {
    "free": lambda raw: _scaled(raw["wr"]),
    "symmetric": lambda raw: _scaled(raw["wr"] + raw["wr"].mT),
    "nonnegative": lambda raw: _scaled(raw["wr"].abs()),
    "symmetric positive definite": _rotated,
    "positive definite symmetric part": _accretive,
}


@dataclass(frozen=True)
class Family:
    """An added condition: the circuits among which a counterexample is looked for.

    Everywhere `|z| <= 1`, the largest singular value of `Wr` is 1, and the entries of `b`, `b0`,
    `sigma` and `W` are below 1.

    Attributes:
        weights: the kind of `Wr`, a key of `WEIGHTS`.
        nonnegative_input: whether `z >= 0`.
        rectified: whether it is the rectified model.
        bounded: whether `max(c) + max(W) |b z|^2 <= 1`: then `a <= 1` for `Wr = I`.
        weak: at most how many times `min(c)` the normalization's `max(W) |b z|^2` may be.
        free_times: whether each neuron has a time constant of its own, from 0.1 to 10.
    """

    weights: str
    nonnegative_input: bool = False
    rectified: bool = False
    bounded: bool = False
    weak: float | None = None
    free_times: bool = False

    def __str__(self) -> str:
        parts = [f"{self.weights} Wr"]
        parts += ["z >= 0"] * self.nonnegative_input + ["rectified"] * self.rectified
        parts += ["max c + max W |bz|^2 <= 1"] * self.bounded
        if self.weak is not None:
            parts.append(f"max W |bz|^2 <= {self.weak:g} min c")
        parts += ["own time constants"] * self.free_times
        return ", ".join(parts)

    def circuits(self, raw: Raw) -> Circuit:
        """Circuits of the family from unconstrained numbers, differentiably."""
        z = _nonnegative(raw) if self.nonnegative_input else _signed(raw)
        drive = raw["b"].sigmoid() * z
        inhibitory_drive = raw["c"].sigmoid().square()
        w = raw["w"].sigmoid()
        if self.bounded:
            size = inhibitory_drive.amax(-1) + w.amax((-1, -2)) * drive.square().sum(-1)
            shrink = size.clamp_min(1.0).unsqueeze(-1)
            inhibitory_drive = inhibitory_drive / shrink
            drive = drive / shrink.sqrt()
        if self.weak is not None:
            size = w.amax((-1, -2)) * drive.square().sum(-1)
            shrink = (size / (self.weak * inhibitory_drive.amin(-1))).clamp_min(1.0)
            drive = drive / shrink.sqrt().unsqueeze(-1)
        tau_y, tau_a = (
            torch.exp(math.log(SLOWEST) * raw[name].tanh() * self.free_times)
            for name in ("tau_y", "tau_a")
        )
        wr = WEIGHTS[self.weights](raw)
        return Circuit(drive, inhibitory_drive, wr, w, tau_y, tau_a, rectified=self.rectified)


FAMILIES = (
    Family("free"),
    Family("free", free_times=True),
    Family("free", rectified=True),
    Family("symmetric"),
    Family("nonnegative"),
    Family("nonnegative", nonnegative_input=True),
    Family("nonnegative", nonnegative_input=True, rectified=True),
    Family("symmetric positive definite"),
    Family("symmetric positive definite", free_times=True),
    Family("positive definite symmetric part"),
    Family("free", bounded=True),
    Family("free", weak=1.0),
    Family("nonnegative", weak=1.0, free_times=True),
    Family("positive definite symmetric part", weak=1.0, free_times=True),
    Family("symmetric positive definite", weak=1.0, free_times=True),
    # For n = 1 and wr = -1 the bound is (4^(1/3) - 1)^3 = 0.2027, by the critical drive.
    Family("free", weak=0.2),
    Family("free", weak=0.2, free_times=True),
    Family("free", weak=0.1, free_times=True),
)


@dataclass(frozen=True)
class Outcome:
    """What came of the search in one family.

    Attributes:
        candidates: how many circuits were followed.
        counterexamples: how many of them ended without a stable steady state, by `classify`.
        closest: the largest real part of an eigenvalue at a stable state, times the largest time
            constant; near 0 a circuit is close to losing its stability.
        example: the parameters of the first counterexample.
    """

    candidates: int
    counterexamples: int
    closest: float
    example: dict[str, Any] | None


def search(family: Family, n: int, seed: int) -> Outcome:
    """Follows the gradient of the leading eigenvalue's real part from random circuits."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        values = torch.randn(CANDIDATES, *shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    vectors = ("z", "b", "c", "tau_y", "tau_a", "eigenvalues")
    raw = {name: gaussian(n) for name in vectors}
    raw |= {name: gaussian(n, n) for name in ("wr", "w", "mix")}
    optimizer = torch.optim.Adam(raw.values(), lr=LEARNING_RATE)
    going = torch.arange(CANDIDATES)
    with torch.no_grad():
        start = family.circuits(raw).steady_state(tol=TOL, on_failure="ignore")
    y, a = start.y, start.a
    closest, suspects = -math.inf, []
    for _ in range(STEPS):
        circuit = family.circuits({name: values[going] for name, values in raw.items()})
        y, a, exists = _follow(circuit, y, a)
        eigenvalues = torch.linalg.eigvals(circuit.jacobian(y, a)).real.amax(-1)
        leading = eigenvalues * torch.maximum(circuit.tau_y.amax(-1), circuit.tau_a.amax(-1))
        lost = ~(exists & (leading < 0))
        suspects.append([tensor[lost].detach() for tensor in _tensors(circuit)])
        # Even if another, stable state is found: the gradient of this one is of no more use.
        going, leading = going[~lost], leading[~lost]
        y, a = y[~lost].detach(), a[~lost].detach()
        if going.numel() == 0:
            break
        closest = max(closest, float(leading.detach().max()))
        optimizer.zero_grad()
        leading.sum().neg().backward()
        for values in raw.values():
            if values.grad is not None:
                values.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
    ended = [torch.cat(parts) for parts in zip(*suspects, strict=True)]
    if len(ended[0]) == 0:
        return Outcome(CANDIDATES, 0, closest, None)
    d, c, wr, w, tau_y, tau_a = ended
    verdict = classify(Circuit(d, c, wr, w, tau_y, tau_a, rectified=family.rectified), seed)
    found = (verdict == Verdict.UNSTABLE) | (verdict == Verdict.NO_STEADY_STATE)
    example = None
    if found.any():
        first = int(found.nonzero()[0])
        example = {
            name: tensor[first].tolist() for name, tensor in zip(ARGUMENTS, ended, strict=True)
        }
    return Outcome(CANDIDATES, int(found.sum()), closest, example)


def search_all(sizes: Sequence[int], seed: int, path: Path) -> None:
    """Searches every family at every size; prints a table and writes it with the examples."""
    records = []
    jobs = [(family, n) for family in FAMILIES for n in sizes]
    for family, n in (progress := tqdm(jobs, unit="search")):
        outcome = search(family, n, seed)
        records.append({"n": n, "family": str(family), **dataclasses.asdict(outcome)})
        progress.write(
            f"n = {n:2d}  {outcome.counterexamples:3d} of {outcome.candidates} end without a "
            f"stable state, closest {outcome.closest:+.4f}: {family}"
        )
    for record in records:
        if not math.isfinite(record["closest"]):
            record["closest"] = None
    write_json(path, {"seed": seed, "searches": records})
    print(f"written to {path}")


def _follow(circuit: Circuit, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fixed points near some states, differentiable by the circuit, and which were found."""
    problem = circuit.flatten()
    with torch.no_grad():
        found = solve_newton(problem, y, a, TOL, NEWTON_STEPS)
        exists = found.status == Status.CONVERGED
        jacobian = problem.jacobian(found.y, found.a, unit_tau=True)
        identity = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype)
        jacobian = torch.where(exists[:, None, None], jacobian, identity)
    # One more of Newton's steps leaves the point where it is and carries its derivative.
    residual = torch.cat(problem.residual(found.y, found.a), -1)
    step = torch.linalg.solve(jacobian, residual.unsqueeze(-1)).squeeze(-1)
    dy, da = torch.where(exists.unsqueeze(-1), step, 0.0).chunk(2, -1)
    return found.y - dy, found.a - da, exists


def _tensors(circuit: Circuit) -> list[Tensor]:
    """The arguments of a family's circuits, each with the batch as first dimension."""
    return [getattr(circuit, name) for name in ARGUMENTS]
