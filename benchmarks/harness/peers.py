"""The layer as a user of torchdeq would write it, with torchdeq's solvers tuned to one accuracy.

The forward and the backward solver are tuned separately, by search: of the settings that reach
the accuracy asked for, the fastest one is kept. Solvers are given what helps them: anderson any
regularization (its default stops it far from 1e-6) and depth, broyden no larger a memory than the
iterations need, fixed-point iteration any damping, each the best of several starts, and every
forward solver the fastest of all backward solvers.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchdeq import get_deq
from torchdeq.solver import get_solver, register_solver

from deq_organics import Circuit, ORGaNICsDEQ
from harness.race import Attempt
from harness.timing import Clock

__all__ = [
    "MAPS",
    "SOLVERS",
    "Accuracy",
    "Peer",
    "Reference",
    "Tensors",
    "circuit_tensors",
    "rates_of",
    "tune",
]

SOLVERS = ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter")
_MAX_ITER = 400
_TOLERANCES = (1e-6, 5e-7, 2e-7, 1e-7)
_BACKWARD_TOLERANCES = (1e-5, 3e-6, 1e-6, 5e-7, 2e-7)
_TINY = 1e-12


class Tensors(NamedTuple):
    """``d (B, n)``, ``c (n,)``, ``Wr (n, n)``, ``W (n, n)`` of circuits that share weights."""

    d: Tensor
    c: Tensor
    wr: Tensor
    w: Tensor


def circuit_tensors(layer: ORGaNICsDEQ, x: Tensor) -> Tensors:
    """What the layer computes from its parameters and input, without its checks."""
    linear = torch.nn.functional.linear
    z = linear(x, layer.input_weight)
    z = z / z.norm(dim=-1, keepdim=True)
    assert layer.gain_weight is not None
    assert layer.recurrent_weight is not None
    gain = linear(x, layer.gain_weight).sigmoid()
    c = (layer.baseline_gain * layer.semisaturation).square()
    return Tensors(gain * z, c, layer.recurrent_weight, layer.normalization_weight)


def rates_of(y: Tensor) -> Tensor:
    """``y+``."""
    return y.relu().square()


class Map(NamedTuple):
    """A fixed-point map of the circuit's state, its starts, and how ``y, a`` are read from it."""

    step: Callable[[Tensors, Tensor], Tensor]
    starts: dict[str, Callable[[Tensors], Tensor]]
    read: Callable[[Tensors, Tensor], tuple[Tensor, Tensor]]


def _circuit_step(t: Tensors, state: Tensor) -> Tensor:
    y, a = state.chunk(2, -1)
    root = a.clamp_min(_TINY).sqrt()
    return torch.cat([t.d + (1.0 - root) * (y @ t.wr.mT), t.c + (y * y * a) @ t.w.mT], -1)


def _rest(t: Tensors) -> Tensor:
    return torch.cat([torch.zeros_like(t.d), t.c.expand_as(t.d)], -1)


def _identity_state(t: Tensors) -> Tensor:
    a = t.c + (t.d * t.d) @ t.w.mT
    return torch.cat([t.d / a.sqrt(), a], -1)


def _normalized_step(t: Tensors, v: Tensor) -> Tensor:
    s = (t.c + (v * v) @ t.w.mT).sqrt()
    y = v / s
    return v + t.d - y + (1.0 - s) * (y @ t.wr.mT)


def _normalized_read(t: Tensors, v: Tensor) -> tuple[Tensor, Tensor]:
    a = t.c + (v * v) @ t.w.mT
    return v / a.sqrt(), a


def _halves(_: Tensors, state: Tensor) -> tuple[Tensor, Tensor]:
    y, a = state.chunk(2, -1)
    return y, a


MAPS = {
    "circuit": Map(_circuit_step, {"rest": _rest, "closed form": _identity_state}, _halves),
    "normalized": Map(
        _normalized_step, {"zero": lambda t: torch.zeros_like(t.d)}, _normalized_read
    ),
}


@dataclass(frozen=True)
class Setting:
    """A solver of torchdeq with its options."""

    solver: str
    tol: float
    max_iter: int
    extra: tuple[tuple[str, float], ...] = ()

    def registered(self) -> str:
        """The name under which torchdeq knows this solver with these extra options."""
        name = "_".join([self.solver, *(f"{key}{value:g}" for key, value in self.extra)])
        register_solver(name, partial(get_solver(self.solver), **dict(self.extra)))
        return name

    def __str__(self) -> str:
        options = [f"{key} {value:g}" for key, value in self.extra]
        # The simple iteration looks at no tolerance: it makes max_iter steps.
        stop = (
            f"{self.max_iter} steps"
            if self.solver == "simple_fixed_point_iter"
            else f"tol {self.tol:g}"
        )
        return ", ".join([*options, stop])


@dataclass(frozen=True)
class Peer:
    """The layer by torchdeq: a map, a start, a forward and a backward solver."""

    map_name: str
    start: str
    forward: Setting
    backward: Setting

    @property
    def name(self) -> str:
        return f"torchdeq {self.forward.solver}"

    @property
    def setting(self) -> str:
        return (
            f"from {self.start}, {self.forward}; backward {self.backward.solver}, {self.backward}"
        )

    def build(self) -> "PeerSolver":
        return PeerSolver(self)


class PeerSolver:
    """Steady states ``y, a`` of circuits, differentiated implicitly by torchdeq."""

    def __init__(self, peer: Peer) -> None:
        self.map = MAPS[peer.map_name]
        self.start = self.map.starts[peer.start]
        self.deq = get_deq(
            f_solver=peer.forward.registered(),
            f_tol=peer.forward.tol,
            f_max_iter=peer.forward.max_iter,
            f_stop_mode="rel",
            b_solver=peer.backward.registered(),
            b_tol=peer.backward.tol,
            b_max_iter=peer.backward.max_iter,
            b_stop_mode="rel",
            ift=True,
            no_stat=peer.forward.solver == "simple_fixed_point_iter",
        )
        self.deq.train()
        self.iterations = 0

    def __call__(self, t: Tensors) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            start = self.start(t)
        states, info = self.deq(lambda state: self.map.step(t, state), start)
        self.iterations = int(info["nstep"].max())
        return self.map.read(t, states[-1])


class Accuracy(NamedTuple):
    """The worst sample's relative residual, and the relative error of the gradients."""

    residual: float
    gradient_error: float


class Reference:
    """Measures accuracy in float64, on one batch of circuits and one random weighting of rates."""

    def __init__(self, tensors: Tensors, weights: Tensor) -> None:
        self.tensors = Tensors(*(part.detach() for part in tensors))
        self.weights = weights
        self.exact = self._gradients(
            Tensors(*(part.double() for part in self.tensors)),
            lambda t: self._library(t, 1e-12),
        )[1]

    @staticmethod
    def _library(t: Tensors, tol: float) -> tuple[Tensor, Tensor]:
        state = Circuit(t.d, t.c, t.wr, t.w).steady_state(tol=tol, on_failure="error")
        return state.y, state.a

    def library(self, tol: float) -> Accuracy:
        """Accuracy of our own solver and its gradients."""
        return self.measure(lambda t: self._library(t, tol))

    def residual(self, y: Tensor, a: Tensor) -> float:
        """The largest relative residual of the batch, evaluated in float64."""
        d, c, wr, w = (part.double() for part in self.tensors)
        problem = Circuit(d, c, wr, w).flatten()
        error = problem.relative_residual(y.detach().double(), a.detach().double())
        return float(error.nan_to_num(torch.inf).max())

    def gradients(self, solve: Callable[[Tensors], tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Gradients by the circuit's tensors, for timing."""
        return self._gradients(self.tensors, solve)[1]

    def measure(self, solve: Callable[[Tensors], tuple[Tensor, Tensor]]) -> Accuracy:
        (y, a), gradients = self._gradients(self.tensors, solve)
        errors = [
            float((found.double() - exact).norm() / exact.norm())
            for found, exact in zip(gradients, self.exact, strict=True)
        ]
        worst = max(error if error == error else float("inf") for error in errors)
        return Accuracy(self.residual(y, a), worst)

    def _gradients(
        self, tensors: Tensors, solve: Callable[[Tensors], tuple[Tensor, Tensor]]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        leaves = Tensors(*(part.clone().requires_grad_() for part in tensors))
        y, a = solve(leaves)
        loss = (rates_of(y) * self.weights.to(y.dtype)).sum()
        return (y, a), torch.autograd.grad(loss, leaves)


def _options(solver: str, depths: tuple[int, ...]) -> list[tuple[tuple[str, float], ...]]:
    if solver == "anderson":
        pairs = itertools.product((1e-8, 1e-10, 1e-12), depths)
        return [(("lam", lam), ("m", depth)) for lam, depth in pairs]
    if solver == "broyden":
        return [()]
    return [(("tau", damping),) for damping in (1.0, 0.8, 0.6)]


def _by_tolerance(
    solver: str, extra: tuple[tuple[str, float], ...], tolerances: tuple[float, ...]
) -> Iterator[Setting]:
    """The same solver, from the loosest tolerance to the tightest."""
    for tol in tolerances:
        yield Setting(solver, tol, _MAX_ITER, extra)


def _seconds(action: Callable[[], Any], best: float, clock: Clock) -> float:
    """The shortest of some runs; hopeless contestants run once."""
    fastest = float("inf")
    for _ in range(6):
        start = clock.mark()
        try:
            action()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return float("inf")
        (seconds,) = clock.laps([start, clock.mark()])
        fastest = min(fastest, seconds)
        if fastest > 2.0 * best:
            break
    return fastest


def _trimmed(peer: Peer, iterations: int) -> Peer:
    """No more iterations than were needed and a few to spare: memory is allocated for all."""
    return replace(peer, forward=replace(peer.forward, max_iter=min(iterations + 5, _MAX_ITER)))


def _residual(run: PeerSolver, reference: Reference) -> float:
    try:
        with torch.no_grad():
            return reference.residual(*run(reference.tensors))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return float("inf")


def tune_forward(
    solver: str,
    map_name: str,
    starts: tuple[str, ...],
    reference: Reference,
    target: float,
    clock: Clock,
) -> tuple[Peer | None, float]:
    """The fastest setting that reaches ``target``, or None, and the smallest residual seen."""
    best, best_seconds, best_residual = None, float("inf"), float("inf")
    any_backward = Setting("fixed_point_iter", 1e-6, _MAX_ITER)
    searched = "fixed_point_iter" if solver == "simple_fixed_point_iter" else solver
    for start, extra in itertools.product(starts, _options(searched, (3, 6))):
        for setting in _by_tolerance(searched, extra, _TOLERANCES):
            peer = Peer(map_name, start, setting, any_backward)
            run = peer.build()
            residual = _residual(run, reference)
            best_residual = min(best_residual, residual)
            if not residual <= 100.0 * target:
                break
            if residual > target:
                continue
            peer = _trimmed(peer, run.iterations)
            if solver == "simple_fixed_point_iter":
                fixed = replace(setting, solver=solver, max_iter=run.iterations)
                peer = replace(peer, forward=fixed)
            run = peer.build()
            if _residual(run, reference) > target:
                continue
            with torch.no_grad():
                seconds = _seconds(partial(run, reference.tensors), best_seconds, clock)
            if seconds < best_seconds:
                best, best_seconds = peer, seconds
            break
    return best, best_residual


def tune_backward(
    peer: Peer, reference: Reference, gradient_target: float, clock: Clock
) -> Peer | None:
    """The peer with the fastest backward solver whose gradients are accurate enough."""
    best, best_seconds = None, float("inf")
    solvers = ("anderson", "broyden", "fixed_point_iter")
    settings = [(solver, extra) for solver in solvers for extra in _options(solver, (3, 6))]
    for solver, extra in settings:
        for setting in _by_tolerance(solver, extra, _BACKWARD_TOLERANCES):
            candidate = replace(peer, backward=setting)
            run = candidate.build()
            try:
                error = reference.measure(run).gradient_error
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                break
            if not error <= 1e3 * gradient_target:
                break
            if error > gradient_target:
                continue
            seconds = _seconds(partial(reference.gradients, run), best_seconds, clock)
            if seconds < best_seconds:
                best, best_seconds = candidate, seconds
            break
    return best


def tune(
    map_name: str,
    starts: tuple[str, ...],
    reference: Reference,
    residual_target: float,
    gradient_target: float,
    clock: Clock,
    attempt: Attempt,
    solvers: tuple[str, ...] = SOLVERS,
) -> tuple[list[Peer], dict[str, float]]:
    """Tuned peers, and the best residual of each solver that does not reach the target.

    Solvers whose search fails are in neither.
    """
    peers, unreached = [], {}
    backward: Setting | None = None
    for solver in solvers:
        what = f"tuning torchdeq's {solver} on the {map_name} map"
        found = attempt(
            what, partial(tune_forward, solver, map_name, starts, reference, residual_target, clock)
        )
        if found is None:
            continue
        peer, best = found
        if peer is None:
            unreached[solver] = best
            continue
        if backward is None:
            search = partial(tune_backward, peer, reference, gradient_target, clock)
            tuned = attempt(f"{what}: backward", search)
            if tuned is None:
                unreached[f"{solver} (its gradient)"] = best
                continue
            backward = tuned.backward
        peers.append(replace(peer, backward=backward))
    return peers, unreached
