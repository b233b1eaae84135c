"""All fixed points of a circuit that a search from many starts finds."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..checks import (
    check_broadcast,
    check_finite,
    check_number,
    check_positive,
    check_positive_int,
)
from ..circuit import Circuit
from ..circuit_arguments import check_state
from ..problem import Problem
from ..response.arguments import check_circuit
from ..stability.cayley import Verdict
from ..stability.spectrum import leading_eigenvalues, verdicts
from ..steady_state.methods.acceptance import attainable, is_within_reach, natural_sizes
from ..steady_state.methods.newton import solve_newton
from ..steady_state.status import Status

__all__ = [
    "FixedPoints",
    "balanced_starts",
    "distance",
    "distinct",
    "draw_starts",
    "fixed_points",
    "newton_from",
]

# Parts of their size by which two states differ that count as one.
_SAME = 1e-6
_NEWTON_STEPS = 50
# Where between two known fixed points Newton's method starts for those between them.
_BETWEEN = (0.25, 0.5, 0.75)
_PAIRS = 32
# Of the natural size of `a`, up to which states with dy/dt = 0 are starts.
_HIGHEST = 1e4
# How many of these there are at least.
_BALANCED = 400


@dataclass(frozen=True)
class FixedPoints:
    """The fixed points of each circuit that were found, those with the largest basins first.

    ``K`` is the largest number of a circuit's; where one has fewer the rest are NaN, and False.
    None of it has a gradient: ``circuit.steady_state(start=...)`` of one that is stable has.
    """

    y: Tensor
    """``(..., K, n)``"""
    a: Tensor
    """``(..., K, n)``"""
    stable: Tensor
    """Boolean ``(..., K)``: proved to be stable."""
    undecided: Tensor
    """Boolean ``(..., K)``: rounding leaves open whether it is stable."""
    leading_eigenvalue: Tensor
    """Of the Jacobian, with the largest real part, complex ``(..., K)``, in 1/time."""
    residual: Tensor
    """Relative residual of the equations in double precision, ``(..., K)``."""
    share: Tensor
    """Of the starts, how many settle there, ``(..., K)``: the size of the basin among them."""
    count: Tensor
    """How many fixed points were found, ``(...)``."""
    cycles: Tensor
    """Share of the starts that end on a cycle, ``(...)``."""
    diverging: Tensor
    """Share of the starts that diverge, ``(...)``."""
    undecided_starts: Tensor
    """Share of the starts of which it is not known where they end, ``(...)``."""

    def __str__(self) -> str:
        counts, circuits = self.count.flatten(), self.count.numel()
        lines = [
            f"FixedPoints of {circuits} circuits, n = {self.y.shape[-1]}: "
            f"{int(counts.sum())} found, {int(self.stable.sum())} stable"
        ]
        lines += [
            f"  {int((counts == number).sum())} circuits have {number}"
            for number in counts.unique().tolist()
        ]
        if circuits == 1:
            flat = [part.reshape(-1) for part in (self.stable, self.undecided, self.share)]
            real, residual = self.leading_eigenvalue.real.flatten(), self.residual.flatten()
            for row in range(int(counts)):
                kind = "stable" if flat[0][row] else "undecided" if flat[1][row] else "unstable"
                lines.append(
                    f"  {row}: {kind}, leading real part {float(real[row]):.4g}, "
                    f"{100 * float(flat[2][row]):.3g} % of the starts, "
                    f"residual {float(residual[row]):.1e}"
                )
        others = ("cycles", "diverging", "undecided_starts")
        means = [f"{100 * float(getattr(self, name).mean()):.3g} % {name}" for name in others]
        lines.append(f"  other starts: {', '.join(means)}".replace("_starts", ""))
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def fixed_points(
    circuit: Circuit,
    starts: int | tuple[Tensor, Tensor] = 200,
    *,
    seed: int = 0,
    tol: float = 1e-12,
) -> FixedPoints:
    """All fixed points that a search from many starts finds, stable ones and others.

    From each start the dynamics are followed, which gives the basins. Newton's method is iterated
    from there, from where they end and from at least 400 states with ``dy/dt = 0`` and ``a`` over
    many decades, which finds unstable ones too; at last it starts between those that are known.
    Nothing proves that there are no more.

    Args:
        circuit: The circuits; those of a batch have the same starts, in units of their own sizes.
        starts: How many; or ``(y, a)``, each ``(S, ..., n)`` with ``a`` positive. Drawn ones are
            uniform in ``y``, within the size that its drive or a response of ``|W y^m| = 1`` has,
            and log-uniform in ``a``, from the inhibitory drive ``c`` to the size of a pool.
        seed: Decides the starts that are drawn.
        tol: Largest relative residual.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
    """
    check_circuit(circuit)
    tol = attainable(check_number("tol", tol, low=0.0, high=1e-3), torch.float64)
    shape, n = circuit.batch_shape, circuit.n
    problem = circuit.flatten().to(torch.float64)
    if isinstance(starts, tuple | list):
        begin = _given(starts, circuit)
    else:
        count = check_positive_int("starts", starts)
        y, a = draw_starts(problem, count, seed)
        begin = (y.reshape(count, *shape, n), a.reshape(count, *shape, n))
    exact = circuit.to(torch.float64)
    ends = exact.steady_state(tol=tol, on_failure="ignore", start=begin)
    first, last = (
        torch.cat([part.reshape(-1, problem.batch_size, n) for part in pair], -1)
        for pair in (begin, (ends.y, ends.a))
    )
    status = ends.status.reshape(-1, problem.batch_size)
    found = []
    for row in range(problem.batch_size):
        one = problem.select(torch.tensor([row], device=status.device))
        # Weights that all states of the search share.
        one = one.map(lambda part, core: part[0] if part.ndim > core == 2 else part)
        more = torch.cat([first[:, row], balanced_starts(one, max(_BALANCED, len(status)), seed)])
        found.append(_search(one, more, last[:, row], status[:, row], tol))
    return _together(found, status, circuit)


class _Found(NamedTuple):
    """Of one circuit, each tensor with a row for each fixed point."""

    state: Tensor
    share: Tensor
    verdict: Tensor
    leading: Tensor
    residual: Tensor


def _given(starts: Any, circuit: Circuit) -> tuple[Tensor, Tensor]:
    if len(starts) != 2:
        raise TypeError(f"starts: got a tuple of {len(starts)}, expected a number or (y, a)")
    y, a = starts
    shape = (*circuit.batch_shape, circuit.n)
    check_state(circuit.input_drive, circuit.batch_shape, {"starts[0]": y, "starts[1]": a})
    check_finite("starts[0]", y)
    check_positive("starts[1]", a)
    count = max(y.shape[0], a.shape[0])
    for name, part in (("starts[0]", y), ("starts[1]", a)):
        expected = f"({count}, *{tuple(shape)}): that many starts of the circuits"
        if part.ndim != len(shape) + 1:
            raise ValueError(f"{name}: got shape {tuple(part.shape)}, expected {expected}")
        check_broadcast(name, part.shape, (count, *shape), expected)
    return y.double().expand(count, *shape), a.double().expand(count, *shape)


def draw_starts(problem: Problem, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """States ``(y, a)``, each ``(S, B, n)``: of every circuit the same, in units of its sizes."""
    generator = torch.Generator().manual_seed(seed)
    n, device = problem.input_drive.shape[-1], problem.input_drive.device
    uniform = torch.rand(count, 2, n, generator=generator, dtype=torch.float64).to(device)
    size_y, size_a = (size.reshape(-1, 1) for size in natural_sizes(problem))
    low = problem.inhibitory_drive
    y = size_y * (2.0 * uniform[:, :1] - 1.0)
    a = low * (size_a / low).pow(uniform[:, 1:])
    shape = (count, problem.batch_size, n)
    return y.expand(shape), a.expand(shape)


def balanced_starts(problem: Problem, count: int, seed: int) -> Tensor:
    """States ``(S, 2n)`` of one circuit at which ``dy/dt = 0``, with ``a`` over many decades.

    Saddles may lie where ``a`` is far beyond any drive: they are close to such states.
    """
    generator = torch.Generator().manual_seed(seed)
    n, device = problem.input_drive.shape[-1], problem.input_drive.device
    uniform = torch.rand(count, 1 + n, generator=generator, dtype=torch.float64).to(device)
    low, high = problem.inhibitory_drive, _HIGHEST * natural_sizes(problem)[1].reshape(-1, 1)
    # Neurons are alike in half of them.
    part = torch.where(uniform[:, :1] < 0.5, 2.0 * uniform[:, :1], uniform[:, 1:])
    a = low * (high / low).pow(part)
    gain = 1.0 - equations.inhibitory_firing_rate(a, problem.exponent)
    identity = torch.eye(n, dtype=torch.float64, device=device)
    matrix = identity - gain.unsqueeze(-1) * problem.recurrent_matrix()
    y, _ = torch.linalg.solve_ex(matrix, problem.input_drive.expand_as(a))
    start = torch.cat([y, a], -1)
    return start[torch.isfinite(start).all(-1)]


def newton_from(problem: Problem, start: Tensor, tol: float) -> Tensor:
    """Fixed points ``(M, 2n)`` of one circuit to which Newton's method gets from ``(S, 2n)``."""
    y, a = start.chunk(2, -1)
    many = problem._replace(input_drive=problem.input_drive.expand_as(y))
    found = solve_newton(many, y, a, tol, _NEWTON_STEPS)
    solved = (found.status == Status.CONVERGED) & is_within_reach(many, found.y, found.a)
    return torch.cat([found.y, found.a], -1)[solved]


def distinct(states: Tensor, known: Tensor) -> Tensor:
    """``known`` ``(K, 2n)`` and those of ``states`` ``(M, 2n)`` that are not among them."""
    for state in states:
        if not (distance(known, state) <= _SAME).any():
            known = torch.cat([known, state.unsqueeze(0)])
    return known


def distance(known: Tensor, state: Tensor) -> Tensor:
    """Of ``(K, 2n)`` from one ``(2n,)``, in parts of the largest ``|y|`` and of each ``a``."""
    n = state.shape[-1] // 2
    gap = (known - state).abs()
    size = state[:n].abs().amax()
    in_y = gap[:, :n].amax(-1) / torch.where(size > 0, size, 1.0)
    return torch.maximum(in_y, (gap[:, n:] / state[n:]).amax(-1))


def _search(problem: Problem, more: Tensor, last: Tensor, status: Tensor, tol: float) -> _Found:
    """Of one circuit, by trajectories that end at ``last`` ``(S, 2n)``, and ``more`` states."""
    settled = last[status == Status.CONVERGED]
    known = distinct(settled, last[:0])
    known = distinct(newton_from(problem, torch.cat([last, more]), tol), known)
    pairs = torch.combinations(torch.arange(len(known)), 2)[:_PAIRS]
    if len(pairs):
        left, right = known[pairs[:, 0]], known[pairs[:, 1]]
        between = torch.cat([(1.0 - part) * left + part * right for part in _BETWEEN])
        known = distinct(newton_from(problem, between, tol), known)
    share = torch.zeros(len(known), dtype=torch.float64, device=last.device)
    for state in settled:
        share[distance(known, state).argmin()] += 1.0 / len(last)
    known, share = (
        known[share.argsort(descending=True, stable=True)],
        share.sort(descending=True)[0],
    )
    y, a = known.chunk(2, -1)
    many = problem._replace(input_drive=problem.input_drive.expand_as(y))
    if len(known) == 0:
        return _Found(known, share, status[:0], share.to(torch.complex128), share)
    verdict, leading = verdicts(many, y, a), leading_eigenvalues(many, y, a)
    return _Found(known, share, verdict, leading, many.relative_residual(y, a))


def _together(found: list[_Found], status: Tensor, circuit: Circuit) -> FixedPoints:
    """The fixed points of all circuits, with as many rows as the one that has most of them."""
    shape, n = circuit.batch_shape, circuit.n
    most = max((len(one.state) for one in found), default=0)

    def padded(parts: list[Tensor], fill: Any) -> Tensor:
        rows = [
            torch.cat([part, part.new_full((most - len(part), *part.shape[1:]), fill)])
            for part in parts
        ]
        stacked = torch.stack(rows) if rows else status.new_zeros((0, most))
        return stacked.reshape(*shape, *stacked.shape[1:])

    def share(kinds: tuple[Status, ...]) -> Tensor:
        chosen = torch.stack([status == kind for kind in kinds]).any(0)
        return chosen.double().mean(0).reshape(shape)

    state = padded([one.state for one in found], torch.nan).to(circuit.input_drive.dtype)
    verdict = padded([one.verdict for one in found], int(Verdict.OUTSIDE))
    known = (Status.CONVERGED, Status.CYCLE, Status.DIVERGED)
    count = torch.tensor([len(one.state) for one in found], device=status.device)
    return FixedPoints(
        state[..., :n],
        state[..., n:],
        verdict == Verdict.INSIDE,
        verdict == Verdict.UNDECIDED,
        padded([one.leading for one in found], complex(torch.nan, torch.nan)),
        padded([one.residual for one in found], torch.nan),
        padded([one.share for one in found], 0.0),
        count.reshape(shape),
        share((Status.CYCLE,)),
        share((Status.DIVERGED,)),
        share(tuple(kind for kind in Status if kind not in known)),
    )
