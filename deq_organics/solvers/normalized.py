"""The fast fixed-point iteration, in the normalized drive ``v = a+ y``.

At a fixed point ``a = c + W (y^2 a) = c + W v^2``: the inhibitory state is an explicit, always
positive function of ``v``, which leaves one equation in ``n`` unknowns,

    r(v) = d - y + (1 - s) Wr y = 0,    s = (c + W |v|^m)^(1/m),    y = v / s.

For ``Wr = I`` it reads ``d - v = 0``. Like the paper's Algorithm 1 the iteration inverts
``I - D(1 - s) Wr``, but at one reference gain for the whole batch, so that a step is three matrix
products instead of a linear system per sample; what is left converges by Anderson acceleration.
"""

import torch
from torch import Tensor

from .. import equations
from .acceleration import SecantAccelerator
from .problem import Problem
from .status import Solution, Status

__all__ = ["reference_gain", "reference_inverse", "solve_normalized"]

_DEPTH = 5
# Of a drive ``b z`` with ``|z| = 1``, and of ``(b0 sigma)^2``, for gains around 1/2 to 1.
_TYPICAL_LENGTH = 0.7
_TYPICAL_SEMISATURATION = 0.25
# Smaller batches keep their shape to the end, so that a sample's last bits do not depend on how
# long its neighbours take.
_COMPACT_FROM = 1024


def reference_gain(problem: Problem) -> Tensor:
    """A typical inhibitory firing rate, ``(n,)`` if the weights are shared, else ``(B, n)``.

    Where it is shared it depends on no sample, so that no sample moves another's iterates: it is
    that of a drive of length ``_TYPICAL_LENGTH`` spread over all neurons.
    """
    n = problem.input_drive.shape[-1]
    if _weights_are_shared(problem):
        drive = problem.input_drive.new_full((n,), _TYPICAL_LENGTH / n**0.5)
        shared = problem.semisaturation.shape[0] == 1
        semisaturation = (
            problem.semisaturation[0] if shared else drive.new_full((n,), _TYPICAL_SEMISATURATION)
        )
    else:
        length = problem.input_drive.norm(dim=-1, keepdim=True)
        drive = (length / n**0.5).expand_as(problem.input_drive)
        semisaturation = problem.semisaturation
    pool = equations.matvec(problem.normalization_weight, equations.power(drive, problem.exponent))
    return equations.inhibitory_firing_rate(semisaturation + pool, problem.exponent)


def _weights_are_shared(problem: Problem) -> bool:
    wr = problem.recurrent_weight
    return problem.normalization_weight.ndim == 2 and (wr is None or wr.ndim == 2)


def reference_inverse(problem: Problem, gain: Tensor) -> Tensor:
    """``(I - D(1 - gain) Wr)^-1``, the identity where that matrix is close to singular."""
    wr = problem.recurrent_matrix()
    identity = torch.eye(wr.shape[-1], dtype=wr.dtype, device=wr.device)
    inverse, info = torch.linalg.inv_ex(identity - (1.0 - gain).unsqueeze(-1) * wr)
    size = inverse.abs().amax((-2, -1), keepdim=True)
    usable = (info == 0)[..., None, None] & (size < 1e4)
    return torch.where(usable, inverse, identity)


def solve_normalized(problem: Problem, tol: float, max_iter: int) -> Solution:
    """Iterate every circuit to a relative residual of at most ``tol``, or to ``max_iter`` steps."""
    size = problem.batch_size
    reference = reference_gain(problem)
    inverse = reference_inverse(problem, reference)
    v = reference * equations.matvec(inverse, problem.input_drive)
    y_out, a_out = torch.zeros_like(v), torch.ones_like(v)
    steps_out = torch.full((size,), max_iter, dtype=torch.int64, device=v.device)
    status = torch.full_like(steps_out, Status.MAX_ITERATIONS)
    error_out = v.new_full((size,), torch.inf)
    sample = torch.arange(size, device=v.device)
    waiting = torch.ones_like(sample, dtype=torch.bool)
    accelerator = SecantAccelerator(_DEPTH)
    for step in range(max_iter + 1):
        y, a, s, r, target = _evaluate(problem, v)
        error = r.norm(dim=-1) / problem.drive_scale(y)
        done = waiting & (error <= tol)
        leaving = waiting if step == max_iter else done
        if leaving.any():
            index = sample[leaving]
            y_out[index], a_out[index], error_out[index] = y[leaving], a[leaving], error[leaving]
            status[sample[done]] = Status.CONVERGED
            steps_out[index] = step
            waiting = waiting & ~leaving
            left = int(waiting.sum())
            if left == 0:
                break
            if sample.shape[0] >= _COMPACT_FROM and 2 * left < sample.shape[0]:
                keep = waiting
                problem, sample, waiting = problem.select(keep), sample[keep], waiting[keep]
                v, s, r, target = v[keep], s[keep], r[keep], target[keep]
                accelerator.select(keep)
                if inverse.ndim == 3:
                    inverse, reference = inverse[keep], reference[keep]
        v = accelerator.propose(v, _correction(problem, inverse, reference, s, r, target))
    return Solution(y_out, a_out, error_out, steps_out, status)


def _evaluate(problem: Problem, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``y, a, s``, the residual ``r`` and the value that the principal equation asks for."""
    m = problem.exponent
    active = equations.drive(v, problem.rectified)
    pool = equations.matvec(problem.normalization_weight, equations.power(active, m))
    a = problem.semisaturation + pool
    s = equations.inhibitory_firing_rate(a, m)
    y = v / s
    recurrent = equations.matvec(problem.recurrent_weight, active / s)
    target = problem.input_drive + (1.0 - s) * recurrent
    return y, a, s, target - y, target


def _correction(
    problem: Problem, inverse: Tensor, reference: Tensor, s: Tensor, r: Tensor, target: Tensor
) -> Tensor:
    scaled = reference / s * r
    if not problem.rectified:
        return s * equations.matvec(inverse, scaled)
    # A silent neuron takes no part in the recurrence: its own equation is explicit.
    firing = target > 0
    spread = equations.matvec(inverse, torch.where(firing, scaled, 0.0))
    return s * torch.where(firing, spread, r)
