"""The circuit's own dynamics, followed until it is known where they end.

What is said of a trajectory was checked along it: that it settles, where Newton's method finds a
stable fixed point right beside it; that it ends on a cycle, where :mod:`.cycles` verifies one;
that it diverges, where it has grown over twelve orders of magnitude. Of all others, and of cycles
of more than 32 neurons, it is said that they did not settle until then.
"""

import torch
from torch import Tensor

from ....problem import Problem
from ....stability.spectrum import is_stable
from ...status import Reached, Solution, Status
from ..acceptance import natural_sizes
from ..newton import solve_newton
from .cycles import Recurrence, verify_cycles
from .rosenbrock import take_step, tolerances

__all__ = ["MAX_STEPS", "Paths", "follow", "rest"]

MAX_STEPS = 4096
_RTOL = 1e-6
# In units of the shortest time constant; what goes on in less is beyond double precision.
_FIRST_STEP, _SHORTEST = 1e-3, 1e-60
# In units of the longest one.
_LONGEST_STEP = 1e4
# Sizes, in parts of the natural ones, from which on a state is only looked at for divergence, with
# this much more tolerance, and at which that is certain.
_LARGE, _SLACK, _DIVERGED = 1e6, 1e3, 1e12
# After so many steps it is looked at what has stopped for it.
_LOOK = 16
_CYCLE_LOOKS = (256, 512, 1024, 2048)
# Neurons up to which cycles are verified: a period costs some hundred exponentials of (2n, 2n).
_LARGEST_VERIFIED = 32
# Relative speeds at which to look for a fixed point, the first one only for its instability; and
# the largest distance of a trajectory from the fixed point at which it is said to end.
_SLOW, _SLOWER, _SLOWEST, _FAST = 1e-4, 1e-6, 1e-14, 1e-3
_DISTANCE = 1e-4
_NEWTON_STEPS = 15
# How far a step may go, in units of the time in which an instability grows by e: longer steps of
# an L-stable method would damp it.
_UNSTABLE_STEP = 0.5
# Of eigenvalues, in parts of the largest entry of the matrix.
_ROUNDING = 1e-12
# Looks that find a trajectory exactly on an unstable fixed point before it is left there.
_PATIENCE = 20


def rest(problem: Problem) -> tuple[Tensor, Tensor]:
    """``y = 0, a = c``, where every circuit rests without input; both ``(B, n)``."""
    y = torch.zeros_like(problem.input_drive)
    return y, problem.inhibitory_drive.expand_as(y).clone()


def follow(
    problem: Problem, start: tuple[Tensor, Tensor], tol: float, max_steps: int = MAX_STEPS
) -> Solution:
    """Integrate from ``start = (y, a)``, each ``(B, n)``, in double precision.

    A trajectory that settles has the status CONVERGED and ends at the stable fixed point, to a
    relative residual of ``tol``.
    """
    paths = Paths(problem, start, tol)
    paths.run(max_steps)
    return paths.ends()


class Paths:
    """The trajectories that are still followed, and what became of the others.

    Attributes ``_end...`` have a row for each circuit; all other tensors one for each trajectory
    that is left, whose circuit is ``_row``.

    Attributes:
        waypoints: ``(y, a)`` of all circuits, means over successive stretches of the trajectories:
            the middle of an oscillation is close to the fixed point that it circles.
    """

    def __init__(self, problem: Problem, start: tuple[Tensor, Tensor], tol: float) -> None:
        state = torch.cat(start, -1)
        size = state.shape[0]
        self._all, self._problem, self._tol = problem, problem, tol
        self._row = torch.arange(size, device=state.device)
        self._state, self._slope, self._time = state, problem.flow(state), state.new_zeros(size)
        self._scale = tolerances(problem, state)
        fastest = torch.minimum(problem.tau_y.amin(-1), problem.tau_a.amin(-1))
        self._length = (_FIRST_STEP * fastest).expand(size).clone()
        slowest = torch.maximum(problem.tau_y.amax(-1), problem.tau_a.amax(-1))
        self._limit = (_LONGEST_STEP * slowest).expand(size).clone()
        self._longest = self._limit
        self._sizes = torch.stack(torch.broadcast_tensors(*natural_sizes(problem)), -1)
        self._speed = torch.full_like(self._time, torch.inf)
        self._level = torch.full_like(self._time, _SLOW)
        self._calm = torch.zeros_like(self._row)
        self._slow = torch.zeros_like(self._time, dtype=torch.bool)
        self._gone = torch.zeros_like(self._slow)
        self._stuck = torch.zeros_like(self._slow)
        self._shortest = _SHORTEST * fastest.expand(size)
        self._last_small, self._slack = state, torch.ones_like(self._time).unsqueeze(-1)
        self._recurrence = Recurrence(state, self._slope, self._scale, self._time)
        self._sum, self._since = torch.zeros_like(state), self._time
        self._steps, self._looks = 0, 0
        self.waypoints: list[tuple[Tensor, Tensor]] = []
        self._end, self._end_time = state.clone(), self._time.clone()
        self._end_status = torch.full_like(self._row, Status.NOT_SETTLED)
        self._end_steps = torch.zeros_like(self._row)
        self._end_period = torch.full_like(self._time, torch.nan)

    def run(self, steps: int, last: bool = True) -> None:
        """Go on until each trajectory has ended or made that many steps in all.

        ``last`` tells that no more steps will follow.
        """
        while self._row.numel() and self._steps < steps:
            self._advance()
            self._steps += 1
            waiting = (last and self._steps == steps) or bool(self._stopped.all())
            if waiting or self._steps % _LOOK == 0:
                self._look(waiting or self._steps in _CYCLE_LOOKS)

    def drop(self, circuits: Tensor) -> None:
        """Leave the trajectories of the circuits of a mask ``(B,)`` where they are."""
        self._retire(circuits[self._row])

    def ends(self) -> Solution:
        """What became of all; trajectories that have not ended have not settled."""
        y, a = self._end.index_put((self._row,), self._state).chunk(2, -1)
        settled = self._end_status == Status.CONVERGED
        return Solution(
            y,
            a,
            self._all.relative_residual(y, a),
            self._end_steps.clone(),
            self._end_status.clone(),
            torch.where(settled, int(Reached.YES), int(Reached.NOT_EXAMINED)),
            self._end_period.clone(),
            self._end_time.index_put((self._row,), self._time),
        )

    @property
    def _stopped(self) -> Tensor:
        return self._slow | self._gone | self._stuck | self._recurrence.returned

    def _advance(self) -> None:
        """One step of every trajectory that nothing has stopped."""
        problem, old = self._problem, (self._state, self._slope)
        moving = ~self._stopped
        length = torch.minimum(self._length, self._longest)
        step = take_step(problem, *old, self._slack * self._scale, length, _RTOL)
        moved = moving & step.accepted
        here = moved.unsqueeze(-1)
        state = torch.where(here, step.state, self._state)
        self._state, self._slope = state, problem.flow(state)
        self._scale = tolerances(problem, state)
        self._length = torch.where(moving, step.next_length, self._length)
        self._stuck = self._length < self._shortest
        length = torch.where(moved, length, 0.0)
        self._time = self._time + length
        self._sum = self._sum + 0.5 * length.unsqueeze(-1) * (old[0] + state)
        self._end_steps[self._row] += moving
        if state.shape[-1] <= 2 * _LARGEST_VERIFIED:
            new = (state, self._slope)
            self._recurrence.observe(old, new, self._scale, self._time, length, moved)

        tau = torch.cat(torch.broadcast_tensors(problem.tau_y, problem.tau_a), -1)
        self._speed = (self._slope * tau / self._scale).abs().amax(-1)
        fast = self._speed > _FAST
        self._level = torch.where(fast, _SLOW, self._level)
        self._longest = torch.where(fast, self._limit, self._longest)
        self._slow = self._speed <= self._level
        largest = torch.stack([part.abs().amax(-1) for part in state.chunk(2, -1)], -1)
        self._gone = (largest > _DIVERGED * self._sizes).any(-1)
        small = (largest <= _LARGE * self._sizes).all(-1, keepdim=True)
        self._last_small = torch.where(small, state, self._last_small)
        self._slack = torch.where(small, 1.0, _SLACK)

    def _look(self, at_cycles: bool) -> None:
        """See to the trajectories that have stopped: some end here, the others go on.

        Those that have returned wait for one another, until it is looked ``at_cycles``.
        """
        done = self._gone
        self._end_status[self._row[done]] = int(Status.DIVERGED)
        # What is returned of a divergence is of a size to compute with.
        self._state = torch.where(done.unsqueeze(-1), self._last_small, self._state)
        done = done | self._stuck
        slow = self._slow & ~done
        if slow.any():
            done = done | self._settle(slow)
        returned = self._recurrence.returned & ~done
        if at_cycles and returned.any():
            done = done | self._close(returned)
        self._looks += 1
        if self._looks & (self._looks - 1) == 0:
            self._mark_waypoint()
        self._retire(done)

    def _settle(self, slow: Tensor) -> Tensor:
        """Which of the ``slow`` ones ``(B,)`` end where they are, at a fixed point."""
        rows = slow.nonzero().squeeze(-1)
        part, state, speed = self._problem.select(rows), self._state[rows], self._speed[rows]
        y, a = state.chunk(2, -1)
        jacobian = part.jacobian(y, a)
        growth = torch.linalg.eigvals(jacobian).real.amax(-1)
        unstable = growth > _ROUNDING * jacobian.abs().amax((-2, -1))
        longest = torch.where(growth > 0, _UNSTABLE_STEP / growth, torch.inf)
        longest = torch.minimum(longest, self._limit[rows])
        self._longest = self._longest.index_put((rows,), longest)
        found = solve_newton(part, y, a, self._tol, _NEWTON_STEPS)
        point = torch.cat([found.y, found.a], -1)
        distance = ((point - state) / self._scale[rows]).abs().amax(-1)
        beside = (found.status == Status.CONVERGED) & (distance <= _DISTANCE)
        stable = is_stable(part, found.y, found.a, beside & (speed <= _SLOWER))
        # What is at rest but for rounding, look after look, stays there.
        undecided = beside & ~unstable & ~stable & (speed <= _SLOWER)
        at_rest = undecided | (beside & unstable & (speed <= _SLOWEST))
        self._calm[rows] = torch.where(at_rest, self._calm[rows] + 1, 0)
        stays = at_rest & (self._calm[rows] >= _PATIENCE)
        self._end_status[self._row[rows[stays]]] = int(Status.UNSTABLE)
        self._end_status[self._row[rows[stays & undecided]]] = int(Status.UNDECIDED)
        self._end_status[self._row[rows[stable]]] = int(Status.CONVERGED)
        ends = stable | stays
        self._state[rows] = torch.where(ends.unsqueeze(-1), point, state)
        level = (1e-2 * self._level[rows]).clamp_min(_SLOWEST)
        self._level[rows] = torch.where(undecided, _SLOWER, level)
        self._slow = torch.zeros_like(self._slow)
        return torch.zeros_like(slow).index_put((rows,), ends)

    def _close(self, returned: Tensor) -> Tensor:
        """Which of the ``returned`` ones ``(B,)`` end on a cycle."""
        rows, seen = returned.nonzero().squeeze(-1), self._recurrence
        verdict, period, _ = verify_cycles(
            self._problem.select(rows),
            seen.reference[rows],
            seen.period[rows],
            seen.scale[rows],
            seen.extent[rows],
        )
        circuits = self._row[rows[verdict]]
        self._end_status[circuits] = int(Status.CYCLE)
        self._end_period[circuits] = period[verdict]
        done = torch.zeros_like(returned).index_put((rows,), verdict)
        seen.dismiss(returned & ~done)
        return done

    def _mark_waypoint(self) -> None:
        """The mean since the last one; every stretch is as long as all before it together."""
        elapsed = (self._time - self._since).unsqueeze(-1)
        moved = elapsed > 0
        mean = torch.where(moved, self._sum / torch.where(moved, elapsed, 1.0), self._state)
        y, a = self._end.index_put((self._row,), mean).chunk(2, -1)
        self.waypoints.append((y, a))
        self._sum, self._since = torch.zeros_like(self._sum), self._time

    def _retire(self, done: Tensor) -> None:
        """Note where the trajectories ``done`` ``(B,)`` end, and go on with the others."""
        if not done.any():
            return
        rows, keep = self._row[done], ~done
        self._end[rows], self._end_time[rows] = self._state[done], self._time[done]
        self._problem = self._problem.select(keep)
        self._recurrence.select(keep)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and not name.startswith("_end"):
                setattr(self, name, value[keep])
