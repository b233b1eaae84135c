"""The default solver: closed form, fast iteration, and a safeguard for what these leave open."""

import torch
from torch import Tensor

from .. import equations
from .dynamics import settle
from .newton import solve_newton
from .normalized import solve_normalized
from .problem import Problem
from .spectrum import is_stable
from .status import Solution, Status

__all__ = ["has_identity_recurrence", "solve_auto", "solve_closed_form"]

_NEWTON_STEPS = 30
_FAR_AWAY = 1e8
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
    y, a = equations.identity_steady_state(
        problem.input_drive,
        problem.semisaturation,
        problem.normalization_weight,
        problem.exponent,
        problem.rectified,
    )
    steps = torch.zeros(problem.batch_size, dtype=torch.int64, device=y.device)
    return Solution(y, a, problem.relative_residual(y, a), steps, torch.zeros_like(steps))


def solve_auto(
    problem: Problem, tol: float, max_iter: int, check_stability: bool = True
) -> Solution:
    """Find a stable steady state of every circuit that has one within reach.

    The fast iteration solves almost every circuit. What it leaves unsolved, or solves at an
    unstable fixed point, goes in double precision to Newton's method and then to the dynamics
    from rest: a circuit that does not settle there is reported as without steady state.
    """
    if has_identity_recurrence(problem):
        return solve_closed_form(problem)
    solution = solve_normalized(problem, tol, max_iter)
    good = _within_reach(problem, solution)
    if check_stability:
        good = is_stable(problem, solution.y, solution.a, good)
    left = (~good).nonzero().squeeze(-1)
    if left.numel():
        chunk = max(1, _ENTRIES_AT_A_TIME // (2 * problem.input_drive.shape[-1]) ** 2)
        for index in left.split(chunk):
            rescued = _rescue(
                problem.select(index).to(torch.float64),
                Solution(*(part[index] for part in solution)),
                tol,
            )
            for part, new in zip(solution, rescued, strict=True):
                part[index] = new.to(part.dtype)
    return solution


def _within_reach(problem: Problem, solution: Solution) -> Tensor:
    """Which circuits are solved, and not where rounding alone makes the equations hold."""
    scale = problem.input_drive.norm(dim=-1) + problem.semisaturation.norm(dim=-1) + 1.0
    size = solution.y.norm(dim=-1) + solution.a.norm(dim=-1)
    return (solution.status == Status.CONVERGED) & (size <= _FAR_AWAY * scale)


def _rescue(problem: Problem, first: Solution, tol: float) -> Solution:
    """Look for a stable fixed point where the fast iteration found none.

    Newton's method starts from the fast iteration's end and from the state for ``Wr = I``; then the
    dynamics are followed from rest, and Newton's method starts from points of that trajectory.
    """
    finite = (torch.isfinite(first.y) & torch.isfinite(first.a)).all(-1, keepdim=True)
    y = torch.where(finite, first.y.double(), 0.0)
    a = torch.where(finite, first.a.double(), problem.semisaturation)
    best = Solution(y, a, first.residual.double(), first.iterations.clone(), first.status.clone())
    left = torch.arange(problem.batch_size, device=y.device)
    left = _try_newton(problem, best, left, (y[left], a[left]), tol)
    if left.numel():
        part = problem.select(left)
        closed = solve_closed_form(part)
        left = _try_newton(problem, best, left, (closed.y, closed.a), tol)
    if left.numel() == 0:
        return best
    followed = left
    trajectory = settle(problem.select(left), tol)
    end = trajectory.end
    best.iterations[left] += end.iterations
    best.status[left] = torch.where(
        end.status == Status.CONVERGED, int(Status.UNSTABLE), end.status
    )
    for start in [(end.y, end.a), *trajectory.waypoints]:
        if left.numel():
            here = torch.isin(followed, left)
            left = _try_newton(problem, best, left, (start[0][here], start[1][here]), tol)
    return best


def _try_newton(
    problem: Problem, best: Solution, left: Tensor, start: tuple[Tensor, Tensor], tol: float
) -> Tensor:
    """Newton's method for the circuits ``left``; stable fixed points go into ``best``.

    Returns which circuits are left then.
    """
    part = problem.select(left)
    found = solve_newton(part, *start, tol, _NEWTON_STEPS)
    stable = is_stable(part, found.y, found.a, _within_reach(part, found))
    best.iterations[left] += found.iterations
    rows = left[stable]
    best.y[rows], best.a[rows], best.residual[rows] = (
        found.y[stable],
        found.a[stable],
        found.residual[stable],
    )
    best.status[rows] = int(Status.CONVERGED)
    return left[~stable]
