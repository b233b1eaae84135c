"""The solve of ``methods/normalized.py``: one program for each circuit."""

import triton
import triton.language as tl

from .acceleration import CURVATURE_PART, propose
from .preconditioner import precondition, row_factor
from .products import TINY, is_nonnegative, length_of, load_matrix, load_vector, magnitude, multiply

_FAR_AWAY = tl.constexpr(1e8)
# Squares of what lies beyond leave the range of float32 unnoticed: left to torch.
_SMALLEST_DRIVE, _LARGEST_DRIVE = tl.constexpr(1e-6), tl.constexpr(1e12)
_SMALLEST_SEMISATURATION = tl.constexpr(1e-8)


@triton.jit
def _evaluate(
    v, d, c, pool, recurrent, N: tl.constexpr, RECTIFIED: tl.constexpr, WEIGHTS: tl.constexpr
):
    """The circuit at the normalized drive ``v``: ``y, a, s`` and the target of ``y``."""
    active = tl.maximum(v, 0.0) if RECTIFIED else v
    a = c + multiply(pool, active * active, N, WEIGHTS)
    s = tl.sqrt(a)
    y = v / s
    driving = tl.maximum(y, 0.0) if RECTIFIED else y
    target = d + (1.0 - s) * multiply(recurrent, driving, N, WEIGHTS)
    return y, a, s, target


@triton.jit
def solve_kernel(
    drive,
    inhibitory_drive,
    matrices,
    diagonals,
    references,
    tau_y,
    tau_a,
    ys,
    as_,
    residuals,
    iterations,
    statuses,
    settled,
    n,
    stride_c,
    stride_tau_y,
    stride_tau_a,
    tol,
    accepted,
    max_iter,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    RECTIFIED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """The fixed point of each circuit, and whether nothing is left to look at.

    ``matrices`` are transposed. A circuit is ``settled`` if it is solved and its
    arguments are valid.
    """
    sample = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, N)
    inside = index < n
    recurrent = load_matrix(matrices, N, WEIGHTS)
    pool = load_matrix(matrices + N * N, N, WEIGHTS)
    inverse = load_matrix(matrices + 2 * N * N, N, INVERSE)
    valid = is_nonnegative(pool, N, WEIGHTS)
    d = load_vector(drive, sample, n, n, 0.0, N)
    c = load_vector(inhibitory_drive, sample, stride_c, n, 1.0, N)
    diagonal = load_vector(diagonals, 0, n, n, 0.0, N)
    reference = load_vector(references, 0, n, n, 1.0, N)

    drive_length = tl.maximum(length_of(d), TINY)
    v = reference * multiply(inverse, d, N, INVERSE)
    y, a, s, target = _evaluate(v, d, c, pool, recurrent, N, RECTIFIED, WEIGHTS)
    error = length_of(target - y) / tl.maximum(length_of(y), drive_length)
    last_r = tl.zeros((N,), tl.float32)
    last_x = tl.zeros((N,), tl.float32)
    basis_r = tl.zeros((DEPTH, N), tl.float32)
    basis_x = tl.zeros((DEPTH, N), tl.float32)
    step = 0
    for _ in range(max_iter):
        if error > tol:
            # Where the target is negative, a neuron of the rectified model is silent.
            firing = target > 0.0 if RECTIFIED else inside
            factor = row_factor(diagonal, reference, 1.0 - s)
            correction = s * precondition(
                target - y, 1.0 - s, factor, firing, inverse, recurrent, N, WEIGHTS, INVERSE
            )
            v, last_r, last_x, basis_r, basis_x = propose(
                v, correction, step, last_r, last_x, basis_r, basis_x, DEPTH, CURVATURE_PART
            )
            y, a, s, target = _evaluate(v, d, c, pool, recurrent, N, RECTIFIED, WEIGHTS)
            error = length_of(target - y) / tl.maximum(length_of(y), drive_length)
            step += 1

    # `Problem.relative_residual` of what is returned.
    active = tl.maximum(y, 0.0) if RECTIFIED else y
    excess = c - a + multiply(pool, active * active * a, N, WEIGHTS)
    a_length = length_of(tl.where(inside, a, 0.0))
    excess = tl.max(tl.where(inside, magnitude(excess / a), 0.0), axis=0)
    residual = tl.maximum(error, excess)
    solved = (error <= tol) & (residual <= accepted)
    scale = length_of(d) + length_of(tl.where(inside, c, 0.0)) + 1.0
    good = solved & valid & (length_of(y) + a_length <= scale * _FAR_AWAY)

    tl.store(ys + sample * n + index, y, mask=inside)
    tl.store(as_ + sample * n + index, a, mask=inside)
    tl.store(residuals + sample, residual)
    tl.store(iterations + sample, step)
    tl.store(statuses + sample, tl.where(solved, 0, 1))

    times_y = load_vector(tau_y, sample, stride_tau_y, n, 1.0, N)
    times_a = load_vector(tau_a, sample, stride_tau_a, n, 1.0, N)
    largest = tl.max(magnitude(d), axis=0)
    good = good & ((largest == 0.0) | ((largest > _SMALLEST_DRIVE) & (largest < _LARGEST_DRIVE)))
    positive = (c > _SMALLEST_SEMISATURATION) & (times_y > 0.0) & (times_a > 0.0)
    positive = positive & (times_y < float("inf")) & (times_a < float("inf"))
    good = good & (tl.sum(tl.where(positive, 0, 1), axis=0) == 0)
    tl.store(settled + sample, good)
