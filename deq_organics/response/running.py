"""Runs an integration: all circuits at once, or from one time to the next."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..integration import METHODS, Outcome, Pieces, Run, StepControl, VectorField, integrate
from .settling import Settling

__all__ = ["run", "run_by_intervals"]

# Elements of the Jacobians of the circuits that are stepped together.
_JACOBIANS_AT_A_TIME = 2**22


def run(
    field: VectorField,
    start: Tensor,
    t: Tensor,
    method: str,
    control: StepControl,
    pieces: Pieces,
) -> Run:
    """All circuits together, or as many as their Jacobians allow."""
    size, width = start.shape
    together = max(1, _JACOBIANS_AT_A_TIME // width**2)
    if not METHODS[method].needs_jacobian or size <= together:
        return integrate(field, start, t, METHODS[method], control, pieces)
    parts = []
    for index in torch.arange(size, device=start.device).split(together):
        part, limits, own = field.select(index), control.take(index), pieces.take(index)
        parts.append(integrate(part, start[index], t, METHODS[method], limits, own))
    return Run(
        torch.cat([part.states for part in parts], 1),
        *(torch.cat(column) for column in list(zip(*parts, strict=True))[1:]),
    )


def run_by_intervals(
    field: VectorField,
    start: Tensor,
    t: Tensor,
    method: str,
    control: StepControl,
    pieces: Pieces,
    *,
    recompute: bool,
    settling: Settling | None,
) -> tuple[Run, Tensor]:
    """As :func:`run`, but steps end at every time of ``t`` ``(T,)``.

    Args:
        field: What :func:`run` takes; so are those that follow.
        start: See there.
        t: See there.
        method: See there.
        control: See there.
        pieces: See there.
        recompute: Whether a derivative computes the steps of each interval anew, so that only the
            states at its ends are kept until then.
        settling: Ends the trajectories that it says have settled; None follows all.

    Returns:
        The run, and since when ``(B,)`` each circuit has settled, NaN where it has not.
    """
    size = start.shape[0]
    states = [start]
    outcome = torch.full((size,), int(Outcome.FINISHED), device=start.device)
    reached = physical_time(t[-1], size)
    since, length = torch.full_like(reached, math.nan), torch.full_like(reached, math.nan)
    rows, state = torch.arange(size, device=start.device), start
    for number in range(t.numel() - 1):
        now = states[-1]
        if rows.numel():
            part, limits, own = field.select(rows), control.take(rows), pieces.take(rows)
            if number:
                limits = limits._replace(first_step=length[rows])
            follow = _interval(part, t[number : number + 2], method, limits, own)
            if recompute and torch.is_grad_enabled():
                found = checkpoint(follow, state, use_reentrant=False)
            else:
                found = follow(state)
            last, end, ended, time, planned = found
            outcome, reached = outcome.index_copy(0, rows, ended), reached.index_copy(0, rows, time)
            length = length.index_copy(0, rows, planned)
            now = now.index_copy(0, rows, last)
            going = ended == Outcome.FINISHED
            if settling is not None:
                rest, still = settling.look(rows, end, going)
                now = now.index_copy(0, rows[still], rest)
                since[rows[still]] = float(t[number + 1])
                going = going & ~still
            rows, state = rows[going], end[going]
        states.append(now)
    reached = torch.where(outcome == Outcome.FINISHED, physical_time(t[-1], size), reached)
    return Run(torch.stack(states), outcome, reached, length, states[-1]), since


def physical_time(time: Tensor, size: int) -> Tensor:
    """A time for each of as many circuits, float64, without a gradient."""
    return time.detach().double().expand(size).clone()


def _interval(
    field: VectorField, ends: Tensor, method: str, control: StepControl, pieces: Pieces
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """From the states at the first of two times to those at the second, and how it ended."""

    def follow(state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        found = run(field, state, ends, method, control, pieces)
        return found.states[-1], found.end, found.outcome, found.time, found.next_length

    return follow
