"""The fast fixed-point iteration, in the normalized drive ``v = a+ y``.

At a fixed point ``a = c + W (y^2 a) = c + W v^2``: the inhibitory state is an explicit, always
positive function of ``v``, which leaves one equation in ``n`` unknowns,

    r(v) = d - y + (1 - s) Wr y = 0,    s = (c + W |v|^m)^(1/m),    y = v / s.

For ``Wr = I`` it reads ``d - v = 0``. Like the paper's Algorithm 1 the iteration inverts
``I - D(1 - s) Wr``, but approximately, from its inverse at one reference for the whole batch: a
step is five matrix products instead of a linear system per sample. What is left converges by
Anderson acceleration.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import equations
from ...norms import size_of
from ...problem import Problem
from ..status import Solution, Status
from .acceleration import CURVATURE_PART, SecantAccelerator
from .preconditioner import Preconditioner

__all__ = ["solve_normalized"]

_DEPTH = 5
# Smaller batches keep their shape to the end, so that a sample's last bits do not depend on how
# long its neighbours take.
_COMPACT_FROM = 1024


class _Point(NamedTuple):
    """The circuit at a normalized drive, each ``(B, n)``."""

    y: Tensor
    a: Tensor
    s: Tensor
    gain: Tensor
    """``1 - s``"""
    target: Tensor
    """``d + (1 - s) Wr drive(y)``, what the principal equation asks ``y`` to be."""
    residual: Tensor
    """``target - y``"""


def solve_normalized(
    problem: Problem,
    tol: float,
    max_iter: int,
    precondition: Callable[[Problem], Preconditioner] = Preconditioner,
) -> Solution:
    """Iterate every circuit to a relative residual of at most ``tol``, or to ``max_iter`` steps.

    The residual is that of the principal equation, because ``a`` follows from ``v``.
    """
    size = problem.batch_size
    preconditioner = precondition(problem)
    # In units of each drive's own size, so that no square in what follows leaves the dtype's range.
    unit = size_of(problem.input_drive)
    pool_unit = _pool_unit(unit, problem.exponent)
    problem = problem._replace(input_drive=problem.input_drive / unit)
    v = preconditioner.reference * preconditioner.apply_at_reference(problem.input_drive)
    y_out, a_out = torch.zeros_like(v), torch.ones_like(v)
    steps_out = torch.full((size,), max_iter, dtype=torch.int64, device=v.device)
    status = torch.full_like(steps_out, Status.MAX_ITERATIONS)
    error_out = v.new_full((size,), torch.inf)
    sample = torch.arange(size, device=v.device)
    waiting = torch.ones_like(sample, dtype=torch.bool)
    drive_length = problem.input_drive.norm(dim=-1)
    # Zero input: v is zero then, and exact.
    drive_length = torch.where(drive_length > 0, drive_length, 1.0)
    accelerator = SecantAccelerator(_DEPTH, CURVATURE_PART)
    for step in range(max_iter + 1):
        point = _evaluate(problem, v, pool_unit)
        # As in `Problem.relative_residual`, with the drive's own length computed once.
        error = point.residual.norm(dim=-1) / torch.maximum(point.y.norm(dim=-1), drive_length)
        done = waiting & (error <= tol)
        leaving = waiting if step == max_iter else done
        if leaving.any():
            index = sample[leaving]
            y_out[index], a_out[index] = point.y[leaving], point.a[leaving]
            error_out[index] = error[leaving]
            status[sample[done]] = Status.CONVERGED
            steps_out[index] = step
            waiting = waiting & ~leaving
            left = int(waiting.sum())
            if left == 0:
                break
            if sample.shape[0] >= _COMPACT_FROM and 2 * left < sample.shape[0]:
                keep = waiting
                problem, sample, waiting = problem.select(keep), sample[keep], waiting[keep]
                v, drive_length, pool_unit = v[keep], drive_length[keep], pool_unit[keep]
                point = _Point(*(part[keep] for part in point))
                accelerator.select(keep)
                preconditioner.select(keep)
        # Where the target is negative, a neuron of the rectified model is silent.
        firing = point.target > 0 if problem.rectified else None
        correction = preconditioner.at(point.gain, firing)(point.residual)
        v = accelerator.propose(v, point.s * correction)
    return Solution.unfollowed(y_out * unit, a_out, error_out, steps_out, status)


def _pool_unit(unit: Tensor, m: float | Tensor) -> Tensor:
    """The unit of ``|v|^m``, ``(B, 1)``; that of ``v`` where each neuron has its own ``m``."""
    return unit if isinstance(m, Tensor) else equations.power(unit, m)


def _evaluate(problem: Problem, v: Tensor, pool_unit: Tensor) -> _Point:
    """At ``v``, in units of which :func:`_pool_unit` tells ``pool_unit``."""
    m = problem.exponent
    active = equations.drive(v, problem.rectified)
    if isinstance(m, Tensor):
        pool = equations.pooled_power(problem.normalization_weight, active * pool_unit, m)
        a = problem.inhibitory_drive + pool
    else:
        pool = equations.matvec(problem.normalization_weight, equations.power(active, m))
        a = torch.addcmul(problem.inhibitory_drive, pool, pool_unit)
    s = equations.root(a, m)
    y = v / s
    gain = 1.0 - s
    recurrent = equations.recurrent_drive(y, problem.recurrent_weight, problem.rectified)
    target = torch.addcmul(problem.input_drive, gain, recurrent)
    return _Point(y, a, s, gain, target, target - y)
