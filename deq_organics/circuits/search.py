"""Finds a stable fixed point of a circuit of any kind."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..stability.matrices import side_of_matrices
from ..steady_state.status import Reached, Status
from .follow import follow, status_of
from .newton import Plain, solve

__all__ = ["Found", "find_fixed_points"]

# By how much the field may bend within a step, in units of itself, and does so ideally; how much
# longer the next step may be.
_MOST_BEND, _BEND, _GROWTH = 0.5, 0.2, 5.0
# What fails is tried again with steps in which the field bends so much less.
_ATTEMPTS = (1.0, 0.1)
# Relative distance below which Newton's method takes over.
_CLOSE = 1e-3
_NEWTON_STEPS = 25


class Found(NamedTuple):
    """States ``(B, N)`` and, ``(B,)``, how each was reached."""

    state: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
    reached: Tensor
    time: Tensor


@torch.no_grad()
def find_fixed_points(
    plain: Plain, start: Tensor | None, max_iter: int, *, verify_stability: bool
) -> Found:
    """By pseudo-transient continuation from rest, then by the dynamics themselves.

    Args:
        plain: The circuits.
        start: States ``(B, N)`` from which the dynamics are followed at once; None is rest, from
            where they are followed if all else fails.
        max_iter: Steps of the continuation.
        verify_stability: Whether a fixed point has to be proved stable.
    """
    size = plain.size
    if start is None:
        begin, state = plain.rest, plain.rest
        residual = torch.full_like(state[:, 0], torch.inf)
        iterations = torch.zeros(size, dtype=torch.int64, device=state.device)
        status = torch.full_like(iterations, int(Status.MAX_ITERATIONS))
        for caution in _ATTEMPTS:
            wanted = status != Status.CONVERGED
            if not wanted.any():
                break
            end, steps = _continue(plain, wanted, max_iter, caution)
            polished = plain.polish(end, _NEWTON_STEPS, wanted)
            found = _judge(polished.jacobian, polished.residual <= plain.tol, verify_stability)
            state = torch.where(wanted.unsqueeze(-1), polished.state, state)
            residual = torch.where(wanted, polished.residual, residual)
            status = torch.where(wanted, found, status)
            iterations = iterations + steps
    else:
        state, begin = start, start
        iterations = torch.zeros(size, dtype=torch.int64, device=start.device)
        residual = torch.full((size,), torch.inf, dtype=start.dtype, device=start.device)
        status = torch.full_like(iterations, int(Status.MAX_ITERATIONS))
    reached = torch.full_like(status, int(Reached.NOT_EXAMINED))
    time = torch.full_like(residual, torch.nan)
    left = (status != Status.CONVERGED).nonzero().squeeze(-1)
    if left.numel():
        last = follow(plain, begin, left)
        state = state.index_copy(0, left, last.state)
        residual = residual.index_copy(0, left, last.residual)
        iterations = iterations.index_add(0, left, last.steps)
        # That nothing was proved of a fixed point says more than that the dynamics are slow.
        open_ = (status[left] == Status.UNDECIDED) & (last.status == Status.NOT_SETTLED)
        outcome = torch.where(open_, int(Status.UNDECIDED), last.status)
        status, time = status.index_copy(0, left, outcome), time.index_copy(0, left, last.time)
        arrived = last.status == Status.CONVERGED
        reached[left[arrived]] = int(Reached.YES)
    return Found(state, residual, iterations, status, reached, time)


def _judge(jacobian: Tensor, solved: Tensor, verify_stability: bool) -> Tensor:
    """The :class:`Status` ``(B,)`` of what Newton's method found."""
    status = torch.where(solved, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    rows = solved.nonzero().squeeze(-1)
    if verify_stability and rows.numel():
        status[rows] = status_of(side_of_matrices(jacobian[rows]))
    return status


def _continue(plain: Plain, wanted: Tensor, max_iter: int, caution: float) -> tuple[Tensor, Tensor]:
    """States close to fixed points, and the steps that each took: pseudo-transient continuation.

    Linearly implicit steps of Euler's as long as the field is almost linear within them: first they
    follow the dynamics, in the end they are Newton's.
    """
    start = plain.rest
    state, slope, jacobian = start, plain.field(start), plain.jacobian(start)
    iterations = torch.zeros(plain.size, dtype=torch.int64, device=start.device)
    identity = torch.eye(plain.width, dtype=start.dtype, device=start.device)
    rate = jacobian.abs().sum(-1).amax(-1)
    usable = torch.isfinite(rate) & (rate > 0) & torch.isfinite(slope).all(-1)
    length = torch.where(usable, 1.0 / rate, 1.0)
    going = usable & wanted
    for _ in range(max_iter):
        distance = plain.distance(plain.newton_step(jacobian, slope), state)
        # A step of Newton's may be short far from rest, too, before the dynamics have begun.
        going = going & ~((distance < _CLOSE) & (length * rate > 1e2)) & (slope != 0).any(-1)
        if not going.any():
            break
        matrix = identity / length[:, None, None] - jacobian
        step = solve(matrix, slope)
        trial = state + step
        ahead = plain.field(torch.where(going.unsqueeze(-1), trial, state))
        # What the field is ahead, beyond what its derivative foretold.
        bend = torch.linalg.vector_norm(ahead - step / length.unsqueeze(-1), dim=-1)
        bend = bend / torch.linalg.vector_norm(slope, dim=-1)
        accepted = going & (bend < caution * _MOST_BEND)
        kept = accepted.unsqueeze(-1)
        growth = torch.where(bend.isfinite(), caution * _BEND / bend, 0.0)
        growth = growth.clamp(1.0 / _GROWTH, _GROWTH)
        length = torch.where(going, length * growth, length)
        state, slope = torch.where(kept, trial, state), torch.where(kept, ahead, slope)
        jacobian = torch.where(kept.unsqueeze(-1), plain.jacobian(state), jacobian)
        iterations = iterations + going
        going = going & (length * rate > 1e-12)
    return state, iterations
