"""The contestants of the layer's benchmark: this library, torchdeq's solvers, the authors' code."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from deq_organics import ORGaNICsDEQ
from harness.peers import Peer, Reference, circuit_tensors, rates_of, tune
from harness.race import Attempt, Contender, Step, gradient_step
from harness.timing import Clock

__all__ = ["OURS", "PUBLISHED", "UNCHECKED", "Contestant", "Field", "enter"]

OURS = "deq_organics"
UNCHECKED = f"{OURS}, verify_stability=False"
PUBLISHED = "published"


@dataclass(frozen=True)
class Contestant:
    """Something that computes rates from the input and is differentiated by its parameters."""

    name: str
    setting: str
    rates: Callable[[Tensor], Tensor]
    parameters: list[Tensor]
    residual: float
    gradient_error: float | None

    def contender(self, weights: Tensor) -> Contender:
        """For the race: a randomly weighted sum of the rates, and its gradients."""

        def prepare(x: Tensor) -> Step:
            return gradient_step(lambda: self.rates(x), weights, [*self.parameters, x])

        return Contender(self.name, prepare, self.setting)


class Field(NamedTuple):
    """What is solved: a layer with one set of weights, and its input."""

    label: str
    layer: ORGaNICsDEQ
    x: Tensor
    at_initialisation: bool
    """Whether ``Wr = I``, where the closed form is a solution."""


def ours(layer: ORGaNICsDEQ, reference: Reference) -> list[Contestant]:
    accuracy = reference.library(layer.tol)
    setting = f"solver {layer.solver}, tol {layer.tol:g}"
    unchecked = copy.deepcopy(layer)
    unchecked.verify_stability = False
    return [
        Contestant(name, setting, entry, list(entry.parameters()), *accuracy)
        for name, entry in ((OURS, layer), (UNCHECKED, unchecked))
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
    if str(path) not in sys.path:
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
    return Contestant(PUBLISHED, setting, net, parameters, residual, None)


def enter(
    field: Field,
    reference: Reference,
    target: float,
    clock: Clock,
    attempt: Attempt,
    *,
    normalized: bool,
    published_code: Path | None,
) -> tuple[list[Contestant], dict[str, float]]:
    """All contestants that are ready, ours first, and the best residual of those out of reach.

    Args:
        field: What is solved.
        reference: Measures their accuracy.
        target: The largest residual of torchdeq's solvers.
        clock: Times their settings.
        attempt: Notes who fails; the others go on.
        normalized: Whether they also solve the normalized map.
        published_code: Checkout of the authors' repository.
    """
    label, layer, x, at_initialisation = field
    contestants: list[Contestant] = attempt(OURS, partial(ours, layer, reference)) or []
    errors = [contestant.gradient_error or 0.0 for contestant in contestants]
    gradient_target = max(target, *errors)
    races: list[tuple[str, str, tuple[str, ...], tuple[str, ...] | None]] = [
        ("", "circuit", ("rest",) if at_initialisation else ("rest", "closed form"), None)
    ]
    if at_initialisation:
        races.append((" (at the solution)", "circuit", ("closed form",), ("fixed_point_iter",)))
    if normalized:
        races.append((" on the normalized map", "normalized", ("zero",), None))
    unreached: dict[str, float] = {}
    for suffix, map_name, starts, solvers in tqdm(
        races, desc=f"{label}: tuning", unit="map", disable=None
    ):
        chosen = {} if solvers is None else {"solvers": solvers}
        peers, missed = tune(
            map_name, starts, reference, target, gradient_target, clock, attempt, **chosen
        )
        for peer in peers:
            entered = attempt(
                f"{peer.name}{suffix}", partial(from_peer, peer, layer, reference, suffix)
            )
            contestants += [] if entered is None else [entered]
        unreached |= {f"torchdeq {name}{suffix}": best for name, best in missed.items()}
    if published_code is not None:
        theirs = attempt(PUBLISHED, partial(published, published_code, layer, x, reference))
        contestants += [] if theirs is None else [theirs]
    return contestants, unreached
