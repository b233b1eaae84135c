"""Whether a trajectory with steady input has settled: a stable fixed point is right beside it."""

import torch
from torch import Tensor

from ..integration import StepControl
from ..problem import Problem
from ..stability.spectrum import is_stable
from ..steady_state.methods.newton import solve_newton
from ..steady_state.status import Status

__all__ = ["Settling"]

# In units of the error that a step is allowed: how close the fixed point has to be, and at what
# relative speed it is looked for.
_CLOSE, _SLOW = 0.1, 10.0
_NEWTON_STEPS = 10


class Settling:
    """Says which trajectories have settled, and where."""

    def __init__(self, problem: Problem, control: StepControl) -> None:
        self._problem, self._control = problem, control

    def look(self, rows: Tensor, state: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Where the settled ones ``(C, 2n)`` of states ``(B', 2n)`` stay, and a mask of them.

        A state has settled if a proved stable fixed point is closer to it than a tenth of a step's
        tolerance. It is replaced by one step of Newton's method, which also turns its derivatives
        into those of the fixed point.

        Args:
            rows: Which circuits of the batch these are, ``(B',)``.
            state: Where they are.
            candidates: Mask ``(B',)`` of those to look at.
        """
        problem, control = self._problem.select(rows), self._control.take(rows)
        here = state.detach()
        unit = control.scale * control.atol + control.rtol * here.abs()
        still = candidates & self._is_close(problem, here, unit, candidates)
        chosen = still.nonzero().squeeze(-1)
        part, point = problem.select(chosen), state[chosen]
        step, _ = torch.linalg.solve_ex(part.jacobian(*point.chunk(2, -1)), part.flow(point))
        return point - step, still

    def _is_close(
        self, problem: Problem, state: Tensor, unit: Tensor, candidates: Tensor
    ) -> Tensor:
        """In double precision: which candidates have a stable fixed point beside them."""
        close = torch.zeros_like(candidates)
        problem, state = problem.map(lambda part, _: part.detach()), state.double()
        tau = torch.cat(torch.broadcast_tensors(problem.tau_y, problem.tau_a), -1)
        speed = (problem.to(torch.float64).flow(state) * tau / unit).abs().amax(-1)
        slow = (candidates & (speed <= _SLOW)).nonzero().squeeze(-1)
        if slow.numel() == 0:
            return close
        part = problem.select(slow).to(torch.float64)
        y, a = state[slow].chunk(2, -1)
        found = solve_newton(part, y, a, 1e-12, _NEWTON_STEPS)
        away = torch.cat([found.y, found.a], -1) - state[slow]
        beside = (found.status == Status.CONVERGED) & ((away / unit[slow]).abs() <= _CLOSE).all(-1)
        close[slow] = is_stable(part, found.y, found.a, beside)
        return close
