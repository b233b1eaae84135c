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
    good = solution.status == Status.CONVERGED
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


def _rescue(problem: Problem, first: Solution, tol: float) -> Solution:
    """Newton from the fast iteration's end, then the dynamics from rest, then Newton again."""
    finite = (torch.isfinite(first.y) & torch.isfinite(first.a)).all(-1, keepdim=True)
    y = torch.where(finite, first.y.double(), 0.0)
    a = torch.where(finite, first.a.double(), problem.semisaturation)
    best = Solution(y, a, first.residual.double(), first.iterations, first.status)
    found_unstable = first.status == Status.CONVERGED
    unsolved = (~found_unstable).nonzero().squeeze(-1)
    stable = torch.zeros_like(found_unstable)
    if unsolved.numel():
        newton = _newton(problem.select(unsolved), y[unsolved], a[unsolved], tol)
        best, stable = _take(best, stable, unsolved, newton)
        found_unstable[unsolved] |= newton.status == Status.UNSTABLE
    left = (~stable).nonzero().squeeze(-1)
    if left.numel() == 0:
        return best
    part = problem.select(left)
    settled, mean_y, mean_a = settle(part, tol)
    newton = _newton(part, mean_y, mean_a, tol)
    newton = newton._replace(iterations=newton.iterations + settled.iterations)
    best, stable = _take(best, stable, left, newton)
    left_mask = (~stable)[left]
    status = best.status.clone()
    fate = torch.where(settled.status == Status.CONVERGED, int(Status.UNSTABLE), settled.status)
    status[left[left_mask]] = fate[left_mask]
    return best._replace(status=status)


def _newton(problem: Problem, y: Tensor, a: Tensor, tol: float) -> Solution:
    """Newton's method with the verdict UNSTABLE for a fixed point that is not stable."""
    newton = solve_newton(problem, y, a, tol, _NEWTON_STEPS)
    solved = newton.status == Status.CONVERGED
    stable = is_stable(problem, newton.y, newton.a, solved)
    verdict = torch.where(solved & ~stable, int(Status.UNSTABLE), newton.status)
    return newton._replace(status=verdict)


def _take(
    best: Solution, stable: Tensor, index: Tensor, found: Solution
) -> tuple[Solution, Tensor]:
    """Put the stable ones of ``found``, which are the circuits ``index``, into ``best``."""
    good = found.status == Status.CONVERGED
    rows = index[good]
    parts = [part.clone() for part in best]
    for part, new in zip(parts, found, strict=True):
        part[rows] = new[good].to(part.dtype)
    parts[3][index] = best.iterations[index] + found.iterations
    stable = stable.clone()
    stable[rows] = True
    return Solution(*parts), stable
