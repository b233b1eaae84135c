"""The adjoint equation of ``steady_state/adjoint.py``: one program for each circuit."""

import triton
import triton.language as tl

from .acceleration import ROUNDING_PART, propose
from .preconditioner import precondition_transposed, row_factor
from .products import TINY, length_of, load_matrix, load_vector, multiply


@triton.jit
def _evaluate_adjoint(
    adjoint_y,
    g_y,
    g_a,
    gain,
    slope,
    inhibition,
    excitation,
    active_over,
    recurrent,
    pool,
    N: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Residual of the one equation that is left, ``slope Wr^T(gain lambda_y)`` and ``omega``."""
    recurrence = multiply(recurrent, gain * adjoint_y, N, WEIGHTS)
    left = g_a + active_over * (adjoint_y - recurrence - g_y) - inhibition * adjoint_y
    omega = multiply(pool, left, N, WEIGHTS)
    recurrence = slope * recurrence
    return g_y + recurrence - adjoint_y + excitation * omega, recurrence, omega


@triton.jit
def adjoint_kernel(
    ys,
    as_,
    recurrent_drives,
    statuses,
    grads_y,
    grads_a,
    matrices,
    diagonals,
    references,
    adjoints_y,
    adjoints_a,
    gained,
    pooled,
    failed,
    n,
    tol,
    accepted,
    max_iter,
    N: tl.constexpr,
    DEPTH: tl.constexpr,
    RECTIFIED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """The adjoint equation of each circuit, by the iteration of :mod:`...adjoint`.

    Beside the adjoint come ``gained``, ``gain lambda_y``, and ``pooled``, the normalization pool:
    factors of the gradients by the weights. Circuits that did not converge have the adjoint 0.
    """
    sample = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, N)
    inside = index < n
    recurrent = load_matrix(matrices, N, WEIGHTS)
    pool = load_matrix(matrices + N * N, N, WEIGHTS)
    inverse = load_matrix(matrices + 2 * N * N, N, INVERSE)
    y = load_vector(ys, sample, n, n, 0.0, N)
    a = load_vector(as_, sample, n, n, 1.0, N)
    u = load_vector(recurrent_drives, sample, n, n, 0.0, N)
    g_y = load_vector(grads_y, sample, n, n, 0.0, N)
    g_a = load_vector(grads_a, sample, n, n, 0.0, N)
    diagonal = load_vector(diagonals, 0, n, n, 0.0, N)
    reference = load_vector(references, 0, n, n, 1.0, N)
    converged = tl.load(statuses + sample) == 0
    g_y = tl.where(converged, g_y, 0.0)
    g_a = tl.where(converged, g_a, 0.0)

    s = tl.sqrt(a)
    gain = 1.0 - s
    active = tl.maximum(y, 0.0) if RECTIFIED else y
    firing = y > 0.0 if RECTIFIED else inside
    slope = tl.where(firing, 1.0, 0.0)
    inhibition = u / (2.0 * s)
    excitation = 2.0 * active * a
    active_over = active / (2.0 * a)
    factor = row_factor(diagonal, reference, gain)

    adjoint_y = tl.zeros((N,), tl.float32)
    residual, recurrence, omega = _evaluate_adjoint(
        adjoint_y,
        g_y,
        g_a,
        gain,
        slope,
        inhibition,
        excitation,
        active_over,
        recurrent,
        pool,
        N,
        WEIGHTS,
    )
    # The right-hand side of the equation that is left: `g_y` and `g_a` differ in their units.
    scale = tl.maximum(length_of(residual), TINY)
    error = length_of(residual) / scale
    last_r = tl.zeros((N,), tl.float32)
    last_x = tl.zeros((N,), tl.float32)
    basis_r = tl.zeros((DEPTH, N), tl.float32)
    basis_x = tl.zeros((DEPTH, N), tl.float32)
    step = 0
    for _ in range(max_iter):
        if error > tol:
            correction = precondition_transposed(
                residual, gain, factor, firing, inverse, recurrent, N, WEIGHTS, INVERSE
            )
            adjoint_y, last_r, last_x, basis_r, basis_x = propose(
                adjoint_y, correction, step, last_r, last_x, basis_r, basis_x, DEPTH, ROUNDING_PART
            )
            residual, recurrence, omega = _evaluate_adjoint(
                adjoint_y,
                g_y,
                g_a,
                gain,
                slope,
                inhibition,
                excitation,
                active_over,
                recurrent,
                pool,
                N,
                WEIGHTS,
            )
            error = length_of(residual) / scale
            step += 1

    # `adjoint_residual` of what is returned.
    adjoint_a = g_a - inhibition * adjoint_y + active * active * omega
    omega = multiply(pool, adjoint_a, N, WEIGHTS)
    error_y = recurrence - adjoint_y + excitation * omega + g_y
    error_a = active * active * omega - inhibition * adjoint_y - adjoint_a + g_a
    size_y = tl.maximum(tl.maximum(length_of(g_y), length_of(adjoint_y)), TINY)
    size_a = tl.maximum(tl.maximum(length_of(g_a), length_of(adjoint_a)), TINY)
    error_y, error_a = length_of(error_y) / size_y, length_of(error_a) / size_a
    solved = tl.sqrt(error_y * error_y + error_a * error_a) <= accepted

    tl.store(adjoints_y + sample * n + index, adjoint_y, mask=inside)
    tl.store(adjoints_a + sample * n + index, adjoint_a, mask=inside)
    tl.store(gained + sample * n + index, gain * adjoint_y, mask=inside)
    tl.store(pooled + sample * n + index, active * active * a, mask=inside)
    tl.store(failed + sample, ~solved)
