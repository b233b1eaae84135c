"""The periodic solution on which a trajectory ends, and how far it swings."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..integration import METHODS, Outcome, StepControl, integrate
from ..problem import Flow, Problem
from ..steady_state.methods.relaxation.cycles import verify_cycles
from ..steady_state.methods.relaxation.rosenbrock import tolerances

__all__ = ["MeasuredCycles", "measure_cycles"]

_SAMPLES = 512
_RTOL, _ATOL = 1e-8, 1e-10


class MeasuredCycles(NamedTuple):
    """Cycles of a flat batch of circuits."""

    y: Tensor
    """A point of each cycle, ``(B, n)``; where the trajectory was, if the cycle was not closed."""
    a: Tensor
    """``(B, n)``, likewise."""
    period: Tensor
    """``(B,)``"""
    lowest: Tensor
    """Smallest values of ``(y, a)`` on the cycle, ``(B, 2n)``; NaN where the periodic solution was
    not found."""
    highest: Tensor
    """Largest values, likewise."""


def measure_cycles(problem: Problem, y: Tensor, a: Tensor, period: Tensor) -> MeasuredCycles:
    """Close the cycles that trajectories at ``(y, a)`` are close to, and follow them once."""
    problem = problem.to(torch.float64)
    state = torch.cat([y, a], -1).double()
    scale = tolerances(problem, state)
    known, path = _one_turn(problem, state, period)
    extent = ((path.amax(0) - path.amin(0)) / scale).amax(-1)
    closed, exact, point = verify_cycles(problem, state, period, scale, extent)
    closed = closed & known
    period = torch.where(closed, exact, period)
    state = torch.where(closed.unsqueeze(-1), point, state)
    known, path = _one_turn(problem, state, period)
    found = (closed & known).unsqueeze(-1)
    lowest, highest = (
        torch.where(found, extreme, torch.nan) for extreme in (path.amin(0), path.amax(0))
    )
    on_y, on_a = state.chunk(2, -1)
    return MeasuredCycles(on_y, on_a, period, lowest, highest)


def _one_turn(problem: Problem, state: Tensor, period: Tensor) -> tuple[Tensor, Tensor]:
    """Which trajectories get through a period, and where they are in it, ``(T, B, 2n)``."""
    unit = period.unsqueeze(-1)
    # Time in units of each circuit's own period: one grid fits all.
    turned = problem._replace(tau_y=problem.tau_y / unit, tau_a=problem.tau_a / unit)
    scale = tolerances(problem, state)
    control = StepControl(_RTOL, torch.full_like(scale, _ATOL), scale)
    grid = torch.linspace(0.0, 1.0, _SAMPLES + 1, dtype=torch.float64, device=state.device)
    found = integrate(Flow(turned), state, grid, METHODS["rodas5p"], control)
    return found.outcome == Outcome.FINISHED, found.states
