"""Eigenvalues of the Jacobian at a state, and the cheap verdict that seldom needs them."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .. import equations
from .problem import Problem

__all__ = ["eigenvalues", "is_stable"]

# A perturbation that shrinks to _DECAY of its length proves stability but for a chance of about
# sqrt(2n) * _DECAY that it started without the unstable direction.
_DECAY = 1e-7
_GROWTH = 1e3
_PROBE_STEPS = 120
_SEED = 7919


def eigenvalues(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """All ``2n`` eigenvalues of each circuit's Jacobian, complex, ``(B, 2n)``.

    Double precision; on a CPU one thread per core, since LAPACK works through a batch one by one.
    """
    problem, y, a = problem.to(torch.float64), y.double(), a.double()
    chunks = torch.arange(y.shape[0], device=y.device).split(64)

    def solve(index: Tensor) -> Tensor:
        return torch.linalg.eigvals(problem.select(index).jacobian(y[index], a[index]))

    if not chunks or len(chunks) == 1 or y.device.type != "cpu":
        parts = [solve(index) for index in chunks]
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = list(pool.map(solve, chunks))
    return torch.cat(parts) if parts else y.new_zeros((0, 2 * y.shape[-1]), dtype=torch.complex128)


def is_stable(problem: Problem, y: Tensor, a: Tensor, candidates: Tensor) -> Tensor:
    """Which of the ``candidates`` (a mask ``(B,)``) are linearly stable at ``(y, a)``.

    A random perturbation is followed through the linearized dynamics by Euler steps. Where it
    dies out the circuit is stable; where it does not within a bounded number of steps, the
    eigenvalues decide.
    """
    verdict = torch.zeros_like(candidates)
    index = candidates.nonzero().squeeze(-1)
    if index.numel() == 0:
        return verdict
    everyone = index.numel() == problem.batch_size
    part = problem if everyone else problem.select(index)
    stable, undecided = _probe(part, *((y, a) if everyone else (y[index], a[index])))
    rows = undecided.nonzero().squeeze(-1)
    if rows.numel():
        spectrum = eigenvalues(part.select(rows), y[index[rows]], a[index[rows]])
        stable[rows] = spectrum.real.amax(-1) < 0
    verdict[index] = stable
    return verdict


def _probe(problem: Problem, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Masks ``(B,)``: proved stable by decay, and undecided."""
    lin = equations.linearize(y, a, problem.recurrent_weight, problem.exponent, problem.rectified)
    slowest = torch.maximum(
        ((1.0 + (lin.gain.abs() - 1.0).clamp_min(0.0)) / problem.tau_y).amax(-1),
        (1.0 / problem.tau_a).amax(-1),
    ).unsqueeze(-1)
    step_y, step_a = 1.0 / (slowest * problem.tau_y), 1.0 / (slowest * problem.tau_a)
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(2, 1, y.shape[-1], generator=generator, dtype=torch.float64).to(y)
    p, q = start[0].expand_as(y), start[1].expand_as(y)
    first = (p.square().sum(-1) + q.square().sum(-1)).sqrt()
    stable = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
    going = ~stable
    for step in range(1, _PROBE_STEPS + 1):
        inner = p if lin.slope is None else lin.slope * p
        flow_p = lin.gain * equations.matvec(problem.recurrent_weight, inner) - lin.inhibition * q
        pool = equations.matvec(problem.normalization_weight, lin.excitation * p + lin.pool * q)
        p, q = torch.lerp(p, flow_p, step_y), torch.lerp(q, pool, step_a)
        if step % 4 == 0:
            length = (p.square().sum(-1) + q.square().sum(-1)).sqrt() / first
            stable |= going & (length <= _DECAY)
            going = going & (length > _DECAY) & (length < _GROWTH)
            if not going.any():
                break
    return stable, ~stable
