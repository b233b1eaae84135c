"""Where the dynamics of a circuit of any kind end: followed with error control."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..integration import METHODS, Outcome, StepControl, integrate
from ..stability.cayley import Verdict
from ..stability.matrices import side_of_matrices
from ..steady_state.status import Status
from .newton import Plain

__all__ = ["Followed", "follow", "status_of"]

_RTOL, _ATOL = 1e-4, 1e-7
# When to look at the trajectories: first in units of the fastest rate, then by this factor.
_FIRST, _FACTOR, _LOOKS = 10.0, 4.0, 12
_STEPS_BETWEEN = 300
# Smaller parts of a state are followed to the tolerance of this part of the whole.
_SMALLEST_PART = 1e-3
# Of a fixed point beside the end of a trajectory: relative distance of what counts as beside.
_BESIDE = 1e-2
_NEWTON_STEPS = 12


class Followed(NamedTuple):
    """Of ``R`` circuits that were followed."""

    state: Tensor
    residual: Tensor
    steps: Tensor
    """Looks that were taken."""
    status: Tensor
    time: Tensor


class _Rows:
    """The equations of some circuits of a batch, ``(R, N)``; the others rest meanwhile."""

    autonomous = True

    def __init__(self, plain: Plain, rows: Tensor) -> None:
        self._plain, self._rows = plain, rows

    def full(self, state: Tensor) -> Tensor:
        return self._plain.rest.index_copy(0, self._rows, state)

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self._plain.field(self.full(state))[self._rows]

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._plain.jacobian(self.full(state))[self._rows]

    def select(self, index: Tensor) -> "_Rows":
        return _Rows(self._plain, self._rows[index])


class _InOwnTime:
    """A field whose unit of time is a span of each circuit's own, ``(R,)``."""

    autonomous = True

    def __init__(self, field: _Rows, span: Tensor) -> None:
        self._field, self._span = field, span

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self._span[:, None] * self._field(time, state)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._span[:, None, None] * self._field.jacobian(time, state)

    def select(self, index: Tensor) -> "_InOwnTime":
        return _InOwnTime(self._field.select(index), self._span[index])


def follow(plain: Plain, start: Tensor, rows: Tensor) -> Followed:
    """Follow the circuits ``rows`` ``(R,)`` from states ``start`` ``(B, N)``.

    Each trajectory is integrated by a stiff method that controls its error, over intervals that
    grow. After each one Newton's method looks for a fixed point beside its end; one that is proved
    stable ends the search.
    """
    field, state = _Rows(plain, rows), start[rows]
    status = torch.full_like(rows, int(Status.NOT_SETTLED))
    steps, time = torch.zeros_like(rows), torch.zeros_like(state[:, 0])
    residual = torch.full_like(time, torch.inf)
    rate = field.jacobian(time, state).abs().sum(-1).amax(-1)
    rate = torch.where(torch.isfinite(rate) & (rate > 0), rate, 1.0)
    grid = torch.tensor([0.0, 1.0], dtype=torch.float64, device=start.device)
    going = torch.arange(rows.numel(), device=start.device)
    for look in range(_LOOKS):
        if going.numel() == 0:
            break
        part, span = field.select(going), _FIRST * _FACTOR**look / rate[going]
        begin = state[going]
        control = _control(plain, torch.maximum(begin.abs(), plain.rest[rows[going]].abs()))
        run = integrate(_InOwnTime(part, span), begin, grid, METHODS["rodas5p"], control)
        finished = run.outcome == Outcome.FINISHED
        time[going] += (run.time * span).to(time.dtype)
        steps[going] += 1
        status[going[run.outcome == Outcome.DIVERGED]] = int(Status.DIVERGED)
        going, end = going[finished], run.states[-1][finished]
        state[going] = end
        if going.numel() == 0:
            break
        found = _beside(plain, rows[going], end)
        state[going[found.settled]] = found.state[found.settled]
        residual[going] = found.residual
        status[going[found.settled]] = int(Status.CONVERGED)
        # What stays at an unstable fixed point, exactly, will not leave it.
        stuck = (end == begin[finished]).all(-1) & ~found.settled
        status[going[stuck]] = found.status[stuck]
        going = going[~found.settled & ~stuck]
    return Followed(state, residual, steps, status, time)


class _Beside(NamedTuple):
    """Fixed points beside the ends of trajectories, ``(R, N)``."""

    state: Tensor
    residual: Tensor
    settled: Tensor
    """Whether there is one that is proved stable."""
    status: Tensor


def _beside(plain: Plain, rows: Tensor, end: Tensor) -> _Beside:
    wanted = torch.zeros(plain.size, dtype=torch.bool, device=end.device)
    wanted[rows] = True
    full = plain.rest.index_copy(0, rows, end)
    polished = plain.polish(full, _NEWTON_STEPS, wanted)
    found, residual = polished.state[rows], polished.residual[rows]
    near = plain.distance(found - end, found) <= _BESIDE
    status = torch.full_like(rows, int(Status.NOT_SETTLED))
    known = (near & (residual <= plain.tol)).nonzero().squeeze(-1)
    if known.numel():
        status[known] = status_of(side_of_matrices(polished.jacobian[rows[known]]))
    return _Beside(found, residual, status == Status.CONVERGED, status)


def status_of(verdict: Tensor) -> Tensor:
    """The :class:`Status` of fixed points by verdicts on their Jacobians."""
    unstable = torch.where(verdict == Verdict.OUTSIDE, int(Status.UNSTABLE), int(Status.UNDECIDED))
    return torch.where(verdict == Verdict.INSIDE, int(Status.CONVERGED), unstable)


def _control(plain: Plain, size: Tensor) -> StepControl:
    """Tolerances of each part by the largest of its components, ``(R, N)``."""
    whole = size.amax(-1, keepdim=True)
    whole = torch.where(whole > 0, whole, 1.0)
    parts = [
        torch.maximum(part.amax(-1, keepdim=True), _SMALLEST_PART * whole).expand_as(part)
        for part in plain.split(size)
    ]
    scale = torch.cat(parts, -1)
    floor = torch.full_like(scale, _ATOL)
    return StepControl(_RTOL, floor, scale, max_steps=_STEPS_BETWEEN)
