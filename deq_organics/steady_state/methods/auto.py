"""The default solver: closed form, fast iteration, and a safeguard for what these leave open."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...problem import Problem
from ...stability.spectrum import is_stable
from ..status import Reached, Solution, Status
from .acceptance import accept, is_within_reach
from .newton import solve_newton
from .normalized import solve_normalized
from .preconditioner import Preconditioner
from .relaxation.dynamics import MAX_STEPS, Paths, follow, rest

__all__ = ["has_identity_recurrence", "solve_auto", "solve_closed_form", "solve_from"]

_NEWTON_STEPS = 30
# After how many steps along the dynamics Newton's method is tried from them.
_STAGES = (128, 512, MAX_STEPS)
# The safeguard works on dense (2n, 2n) matrices: this many of their entries at a time.
_ENTRIES_AT_A_TIME = 2**25


def has_identity_recurrence(problem: Problem) -> bool:
    """Whether ``Wr = I`` exactly: then Eq. 4 holds and Theorem 4.3 proves stability."""
    wr = problem.recurrent_weight
    if wr is None:
        return True
    identity = torch.eye(wr.shape[-1], dtype=wr.dtype, device=wr.device)
    return wr.ndim == 2 and torch.equal(wr, identity)


def solve_closed_form(problem: Problem) -> Solution:
    """The fixed point for ``Wr = I``, Eq. 4 or Eq. 89."""
    y, a = problem.identity_steady_state()
    steps = torch.zeros(problem.batch_size, dtype=torch.int64, device=y.device)
    return Solution.unfollowed(y, a, y.new_zeros(y.shape[0]), steps, torch.zeros_like(steps))


def solve_auto(
    problem: Problem,
    tol: float,
    max_iter: int,
    verify_stability: bool = True,
    precondition: Callable[[Problem], Preconditioner] = Preconditioner,
) -> Solution:
    """Find a stable steady state of every circuit that has one within reach.

    The fast iteration solves almost every circuit. What it leaves unsolved, or solves at an
    unstable fixed point, goes in double precision to Newton's method and then to the dynamics
    from rest, whose end is reported where no stable steady state is found.
    """
    if has_identity_recurrence(problem):
        return accept(problem, solve_closed_form(problem), tol, Status.NOT_REPRESENTABLE)
    solution = accept(problem, solve_normalized(problem, tol, max_iter, precondition), tol)
    good = _solved(problem, solution)
    if verify_stability:
        good = is_stable(problem, solution.y, solution.a, good)
    left = ~good & (solution.status != Status.NOT_REPRESENTABLE)
    for index in _chunks(problem, left.nonzero().squeeze(-1)):
        part = problem.select(index)
        first = Solution(*(values[index] for values in solution))
        rescued = _in_double(part, _rescue(part.to(torch.float64), first, tol), tol)
        for values, new in zip(solution, rescued, strict=True):
            values[index] = new
    return solution


def solve_from(
    problem: Problem, start: tuple[Tensor, Tensor], tol: float, max_steps: int
) -> Solution:
    """Where the dynamics end that start at ``y`` and ``a``, each ``(B, n)``."""
    parts = []
    for index in _chunks(problem, torch.arange(problem.batch_size, device=start[0].device)):
        part = problem.select(index)
        state = (start[0][index].double(), start[1][index].double())
        end = follow(part.to(torch.float64), state, tol, max_steps)
        parts.append(_in_double(part, end, tol))
    return Solution(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunks(problem: Problem, index: Tensor) -> tuple[Tensor, ...]:
    size = max(1, _ENTRIES_AT_A_TIME // (2 * problem.input_drive.shape[-1]) ** 2)
    return index.split(size) if index.numel() else ()


def _in_double(problem: Problem, solution: Solution, tol: float) -> Solution:
    """A solution that was found in double precision, in the problem's own dtype."""
    dtype = problem.input_drive.dtype
    own = (part.to(dtype) if part.is_floating_point() else part for part in solution)
    return accept(problem, Solution(*own), tol, Status.NOT_REPRESENTABLE)


def _solved(problem: Problem, solution: Solution) -> Tensor:
    converged = solution.status == Status.CONVERGED
    return converged & is_within_reach(problem, solution.y, solution.a)


def _rescue(problem: Problem, first: Solution, tol: float) -> Solution:
    """Look for a stable fixed point where the fast iteration found none.

    Newton's method starts from the fast iteration's end and from the state for ``Wr = I``; then the
    dynamics are followed from rest, and Newton's method starts from points of that trajectory.
    """
    best = Solution(
        *(part.double() if part.is_floating_point() else part.clone() for part in first)
    )
    left = torch.arange(problem.batch_size, device=first.y.device)
    left = _try_newton(problem, best, left, (best.y, best.a), tol)
    if left.numel():
        part = problem.select(left)
        closed = solve_closed_form(part)
        left = _try_newton(problem, best, left, (closed.y, closed.a), tol)
    if left.numel() == 0:
        return best
    _follow_from_rest(problem, best, left, tol)
    return best


def _follow_from_rest(problem: Problem, best: Solution, circuits: Tensor, tol: float) -> None:
    """The dynamics of some ``circuits``, and Newton's method from points along them.

    What is found goes into ``best``. The dynamics are left where a stable fixed point is known.
    """
    part, left = problem.select(circuits), circuits
    paths, steps_before, tried = Paths(part, rest(part), tol), torch.zeros_like(circuits), 0
    for steps in _STAGES:
        paths.run(steps, last=steps == MAX_STEPS)
        ends, going = paths.ends(), torch.isin(circuits, left)
        spent = best.iterations[circuits] + ends.iterations - steps_before
        steps_before = ends.iterations
        for values, new in zip(best, ends._replace(iterations=spent), strict=True):
            values[left] = new[going]
        left = left[best.status[left] != Status.CONVERGED]
        for start in [(ends.y, ends.a), *reversed(paths.waypoints[tried:])]:
            if left.numel():
                here = torch.isin(circuits, left)
                left = _try_newton(problem, best, left, (start[0][here], start[1][here]), tol)
        tried = len(paths.waypoints)
        if left.numel() == 0:
            break
        paths.drop(~torch.isin(circuits, left))


def _try_newton(
    problem: Problem, best: Solution, left: Tensor, start: tuple[Tensor, Tensor], tol: float
) -> Tensor:
    """Newton's method for the circuits ``left``; stable fixed points go into ``best``.

    Returns which circuits are left then.
    """
    part = problem.select(left)
    found = solve_newton(part, *start, tol, _NEWTON_STEPS)
    stable = is_stable(part, found.y, found.a, _solved(part, found))
    best.iterations[left] += found.iterations
    rows = left[stable]
    best.y[rows], best.a[rows], best.residual[rows] = (
        found.y[stable],
        found.a[stable],
        found.residual[stable],
    )
    # Dynamics from rest that are known to end elsewhere do not reach this fixed point.
    elsewhere = (best.status[rows] == Status.CYCLE) | (best.status[rows] == Status.DIVERGED)
    best.reached[rows] = torch.where(elsewhere, int(Reached.NO), int(Reached.NOT_EXAMINED))
    best.status[rows] = int(Status.CONVERGED)
    return left[~stable]
