"""The solves of :mod:`...methods.normalized` and :mod:`...adjoint` as Triton kernels.

One program takes one circuit from its input drive to its steady state: the weights stay in
registers, vectors of neurons too, and nothing returns to the host in between. Products are sums
of float32 products, never TF32. Names follow the torch code that each function mirrors; sizes are
padded to ``N``, a power of two, with neurons that have no drive, no weights and ``a = 1``.

Loops that end early are written as a ``for`` with an ``if``: Triton 3.6 fails on some ``while``
loops.

Matrices come padded, three of them one after another: ``Wr``, ``W`` and the preconditioner's
inverse. A product contracts their first dimension, which lies within a thread, so that they come
transposed for a product with the matrix, and as they are for one with its transpose.
"""

import triton
import triton.language as tl

# As in `..solvers.acceleration`, for float32.
_CURVATURE_PART, _ROUNDING_PART = tl.constexpr(0.3), tl.constexpr(1.1920929e-04)
# The smallest normal number of float32.
_TINY = tl.constexpr(1.1754944e-38)
# As in `..solvers.preconditioner`.
_SMALLEST_FACTOR = tl.constexpr(1 / 16)
_LARGEST_FACTOR = tl.constexpr(1e4)
_LARGEST_INVERSE = tl.constexpr(1e4)
_FAR_AWAY = tl.constexpr(1e8)
# Squares of what lies beyond leave the range of float32 unnoticed: left to torch.
_SMALLEST_DRIVE, _LARGEST_DRIVE = tl.constexpr(1e-6), tl.constexpr(1e12)
_SMALLEST_SEMISATURATION = tl.constexpr(1e-8)


@triton.jit
def _load_columns(pointer, first, N: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], first + tl.arange(0, COLUMNS)[None, :]
    return tl.load(pointer + row * N + column)


@triton.jit
def _matrix(pointer, N: tl.constexpr, RESIDENT: tl.constexpr):
    """The matrix ``(N, N)`` in registers or, where it does not fit, its address."""
    return _load_columns(pointer, 0, N, N) if RESIDENT else pointer


@triton.jit
def _product(matrix, x, N: tl.constexpr, RESIDENT: tl.constexpr):
    """``sum_k matrix[k, j] x[k]`` for ``x`` ``(N,)``."""
    if RESIDENT:
        product = tl.sum(matrix * x[:, None], axis=0)
    else:
        # By blocks of columns, which are the rows of `blocks`.
        COLUMNS: tl.constexpr = 4096 // N
        blocks = tl.zeros((N // COLUMNS, COLUMNS), tl.float32)
        row = tl.arange(0, N // COLUMNS)[:, None]
        for block in range(N // COLUMNS):
            entries = _load_columns(matrix, block * COLUMNS, N, COLUMNS)
            part = tl.sum(entries * x[:, None], axis=0)
            blocks = tl.where(row == block, part[None, :], blocks)
        product = tl.reshape(blocks, (N,))
    return product


@triton.jit
def _count_negative(entries):
    return tl.sum(tl.sum(tl.where(entries >= 0.0, 0, 1), axis=0), axis=0)


@triton.jit
def _is_nonnegative(matrix, N: tl.constexpr, RESIDENT: tl.constexpr):
    """Whether no entry of the matrix is negative or NaN."""
    if RESIDENT:
        count = _count_negative(matrix)
    else:
        COLUMNS: tl.constexpr = 4096 // N
        count = 0
        for block in range(N // COLUMNS):
            count += _count_negative(_load_columns(matrix, block * COLUMNS, N, COLUMNS))
    return count == 0


@triton.jit
def _load_vector(pointer, sample, stride, n, other, N: tl.constexpr):
    index = tl.arange(0, N)
    return tl.load(pointer + sample * stride + index, mask=index < n, other=other)


@triton.jit
def _magnitude(x):
    """``|x|``, infinite for NaN: a maximum of NaN is whatever the compiler makes of it."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def _length(x):
    return tl.sqrt(tl.sum(x * x, axis=0))


@triton.jit
def _precondition(
    right,
    gain,
    factor,
    firing,
    inverse,
    recurrent,
    N: tl.constexpr,
    WEIGHTS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """``Preconditioner.at(gain, firing)(right)``."""
    active = tl.where(firing, right, 0.0)
    solution = tl.where(firing, _product(inverse, factor * active, N, INVERSE), 0.0)
    left = active - solution + gain * _product(recurrent, solution, N, WEIGHTS)
    left = tl.where(firing, left, 0.0)
    refined = solution + _product(inverse, factor * left, N, INVERSE)
    return tl.where(firing, refined, right)


@triton.jit
def _precondition_transposed(
    right,
    gain,
    factor,
    firing,
    inverse,
    recurrent,
    N: tl.constexpr,
    WEIGHTS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """``Preconditioner.at(gain, firing, transpose=True)(right)``."""
    active = tl.where(firing, right, 0.0)
    solution = tl.where(firing, factor * _product(inverse, active, N, INVERSE), 0.0)
    left = active - solution + _product(recurrent, gain * solution, N, WEIGHTS)
    left = tl.where(firing, left, 0.0)
    refined = solution + factor * _product(inverse, left, N, INVERSE)
    return tl.where(firing, refined, right)


@triton.jit
def _row_factor(diagonal, reference, gain):
    """The factor of each row that makes the preconditioner exact for a diagonal ``Wr``."""
    factor = (1.0 - (1.0 - reference) * diagonal) / (1.0 - gain * diagonal)
    return tl.minimum(tl.maximum(factor, _SMALLEST_FACTOR), _LARGEST_FACTOR)


@triton.jit
def _propose(
    x, residual, step, last_r, last_x, basis_r, basis_x, DEPTH: tl.constexpr, PART: tl.constexpr
):
    """``SecantAccelerator.propose``, and its memory for the next step.

    The last pair ``(r, x + r)`` as ``last_r`` and ``last_x``, ``(N,)``, and the orthonormal basis
    of their differences as ``basis_r`` and ``basis_x``, ``(DEPTH, N)``.
    """
    moved = x + residual
    difference_r, difference_x = residual - last_r, moved - last_x
    length = _length(difference_r)
    oldest = tl.arange(0, DEPTH) == (step - 1) % DEPTH
    change = tl.sum(basis_r * difference_r[None, :], axis=1)
    overlap = tl.sum(basis_r * residual[None, :], axis=1)
    overlap = tl.where(oldest, 0.0, overlap)
    difference_r -= tl.sum(basis_r * change[:, None], axis=0)
    difference_x -= tl.sum(basis_x * change[:, None], axis=0)
    proposal = moved - tl.sum(basis_x * overlap[:, None], axis=0)
    norm = _length(difference_r)
    useful = (step > 0) & (norm > length * PART)
    scale = tl.where(useful, 1.0 / tl.where(useful, norm, 1.0), 0.0)
    newest_r, newest_x = difference_r * scale, difference_x * scale
    basis_r = tl.where(oldest[:, None], newest_r[None, :], basis_r)
    basis_x = tl.where(oldest[:, None], newest_x[None, :], basis_x)
    proposal -= tl.sum(newest_r * residual, axis=0) * newest_x
    return proposal, residual, moved, basis_r, basis_x


@triton.jit
def _evaluate(
    v, d, c, pool, recurrent, N: tl.constexpr, RECTIFIED: tl.constexpr, WEIGHTS: tl.constexpr
):
    """The circuit at the normalized drive ``v``: ``y, a, s`` and the target of ``y``."""
    active = tl.maximum(v, 0.0) if RECTIFIED else v
    a = c + _product(pool, active * active, N, WEIGHTS)
    s = tl.sqrt(a)
    y = v / s
    driving = tl.maximum(y, 0.0) if RECTIFIED else y
    target = d + (1.0 - s) * _product(recurrent, driving, N, WEIGHTS)
    return y, a, s, target


@triton.jit
def prepare_kernel(
    semisaturation,
    recurrent_weight,
    normalization_weight,
    matrices,
    transposed,
    diagonals,
    references,
    n,
    typical_drive,
    N: tl.constexpr,
):
    """``Preconditioner`` for one shared ``semisaturation``.

    ``matrices`` takes ``Wr``, ``W`` and the inverse, and ``transposed`` the same transposed, all
    padded. The second program copies ``W``, the first does everything else. A row of
    ``I - D(gain) Wr`` is not moved for its pivot: where that fails the preconditioner is the
    identity.
    """
    index = tl.arange(0, N)
    row, column = index[:, None], index[None, :]
    inside, both = index < n, (row < n) & (column < n)
    pool = tl.load(normalization_weight + row * n + column, mask=both, other=0.0)
    if tl.program_id(0) == 1:
        tl.store(matrices + N * N + row * N + column, pool)
        tl.store(transposed + N * N + column * N + row, pool)
    else:
        c = tl.load(semisaturation + index, mask=inside, other=1.0)
        reference = tl.sqrt(c + typical_drive * typical_drive * tl.sum(pool, axis=1))
        tl.store(references + index, reference, mask=inside)
        recurrent = tl.load(recurrent_weight + row * n + column, mask=both, other=0.0)
        tl.store(matrices + row * N + column, recurrent)
        tl.store(transposed + column * N + row, recurrent)
        diagonal = tl.sum(tl.where(row == column, recurrent, 0.0), axis=0)
        tl.store(diagonals + index, diagonal, mask=inside)

        matrix = tl.where(row == column, 1.0, 0.0) - (1.0 - reference)[:, None] * recurrent
        for k in range(n):
            matrix, _ = _eliminate(matrix, k, N)
        large = tl.where(tl.abs(matrix) < _LARGEST_INVERSE, 0, 1)
        usable = tl.sum(tl.sum(large, axis=0), axis=0) == 0
        matrix = tl.where(usable, matrix, tl.where(row == column, 1.0, 0.0))
        tl.store(matrices + 2 * N * N + row * N + column, matrix)
        tl.store(transposed + 2 * N * N + column * N + row, matrix)


@triton.jit
def _eliminate(matrix, k, N: tl.constexpr):
    """One step of the inversion of a matrix in place by Gauss and Jordan, and its pivot."""
    here = tl.arange(0, N) == k
    row = tl.sum(tl.where(here[:, None], matrix, 0.0), axis=0)
    column = tl.sum(tl.where(here[None, :], matrix, 0.0), axis=1)
    pivot = tl.sum(tl.where(here, row, 0.0), axis=0)
    others = matrix - column[:, None] * (row / pivot)[None, :]
    matrix = tl.where(here[None, :], -column[:, None] / pivot, others)
    matrix = tl.where(here[:, None], (row / pivot)[None, :], matrix)
    return tl.where(here[:, None] & here[None, :], 1.0 / pivot, matrix), pivot


@triton.jit
def solve_kernel(
    drive,
    semisaturation,
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
    recurrent = _matrix(matrices, N, WEIGHTS)
    pool = _matrix(matrices + N * N, N, WEIGHTS)
    inverse = _matrix(matrices + 2 * N * N, N, INVERSE)
    valid = _is_nonnegative(pool, N, WEIGHTS)
    d = _load_vector(drive, sample, n, n, 0.0, N)
    c = _load_vector(semisaturation, sample, stride_c, n, 1.0, N)
    diagonal = _load_vector(diagonals, 0, n, n, 0.0, N)
    reference = _load_vector(references, 0, n, n, 1.0, N)

    drive_length = tl.maximum(_length(d), _TINY)
    v = reference * _product(inverse, d, N, INVERSE)
    y, a, s, target = _evaluate(v, d, c, pool, recurrent, N, RECTIFIED, WEIGHTS)
    error = _length(target - y) / tl.maximum(_length(y), drive_length)
    last_r = tl.zeros((N,), tl.float32)
    last_x = tl.zeros((N,), tl.float32)
    basis_r = tl.zeros((DEPTH, N), tl.float32)
    basis_x = tl.zeros((DEPTH, N), tl.float32)
    step = 0
    for _ in range(max_iter):
        if error > tol:
            # Where the target is negative, a neuron of the rectified model is silent.
            firing = target > 0.0 if RECTIFIED else inside
            factor = _row_factor(diagonal, reference, 1.0 - s)
            correction = s * _precondition(
                target - y, 1.0 - s, factor, firing, inverse, recurrent, N, WEIGHTS, INVERSE
            )
            v, last_r, last_x, basis_r, basis_x = _propose(
                v, correction, step, last_r, last_x, basis_r, basis_x, DEPTH, _CURVATURE_PART
            )
            y, a, s, target = _evaluate(v, d, c, pool, recurrent, N, RECTIFIED, WEIGHTS)
            error = _length(target - y) / tl.maximum(_length(y), drive_length)
            step += 1

    # `Problem.relative_residual` of what is returned.
    active = tl.maximum(y, 0.0) if RECTIFIED else y
    excess = c - a + _product(pool, active * active * a, N, WEIGHTS)
    a_length = _length(tl.where(inside, a, 0.0))
    excess = tl.max(tl.where(inside, _magnitude(excess / a), 0.0), axis=0)
    residual = tl.maximum(error, excess)
    solved = (error <= tol) & (residual <= accepted)
    scale = _length(d) + _length(tl.where(inside, c, 0.0)) + 1.0
    good = solved & valid & (_length(y) + a_length <= scale * _FAR_AWAY)

    tl.store(ys + sample * n + index, y, mask=inside)
    tl.store(as_ + sample * n + index, a, mask=inside)
    tl.store(residuals + sample, residual)
    tl.store(iterations + sample, step)
    tl.store(statuses + sample, tl.where(solved, 0, 1))

    times_y = _load_vector(tau_y, sample, stride_tau_y, n, 1.0, N)
    times_a = _load_vector(tau_a, sample, stride_tau_a, n, 1.0, N)
    largest = tl.max(_magnitude(d), axis=0)
    good = good & ((largest == 0.0) | ((largest > _SMALLEST_DRIVE) & (largest < _LARGEST_DRIVE)))
    positive = (c > _SMALLEST_SEMISATURATION) & (times_y > 0.0) & (times_a > 0.0)
    positive = positive & (times_y < float("inf")) & (times_a < float("inf"))
    good = good & (tl.sum(tl.where(positive, 0, 1), axis=0) == 0)
    tl.store(settled + sample, good)


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
    recurrence = _product(recurrent, gain * adjoint_y, N, WEIGHTS)
    left = g_a + active_over * (adjoint_y - recurrence - g_y) - inhibition * adjoint_y
    omega = _product(pool, left, N, WEIGHTS)
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
    recurrent = _matrix(matrices, N, WEIGHTS)
    pool = _matrix(matrices + N * N, N, WEIGHTS)
    inverse = _matrix(matrices + 2 * N * N, N, INVERSE)
    y = _load_vector(ys, sample, n, n, 0.0, N)
    a = _load_vector(as_, sample, n, n, 1.0, N)
    u = _load_vector(recurrent_drives, sample, n, n, 0.0, N)
    g_y = _load_vector(grads_y, sample, n, n, 0.0, N)
    g_a = _load_vector(grads_a, sample, n, n, 0.0, N)
    diagonal = _load_vector(diagonals, 0, n, n, 0.0, N)
    reference = _load_vector(references, 0, n, n, 1.0, N)
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
    factor = _row_factor(diagonal, reference, gain)

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
    scale = tl.maximum(_length(residual), _TINY)
    error = _length(residual) / scale
    last_r = tl.zeros((N,), tl.float32)
    last_x = tl.zeros((N,), tl.float32)
    basis_r = tl.zeros((DEPTH, N), tl.float32)
    basis_x = tl.zeros((DEPTH, N), tl.float32)
    step = 0
    for _ in range(max_iter):
        if error > tol:
            correction = _precondition_transposed(
                residual, gain, factor, firing, inverse, recurrent, N, WEIGHTS, INVERSE
            )
            adjoint_y, last_r, last_x, basis_r, basis_x = _propose(
                adjoint_y, correction, step, last_r, last_x, basis_r, basis_x, DEPTH, _ROUNDING_PART
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
            error = _length(residual) / scale
            step += 1

    # `adjoint_residual` of what is returned.
    adjoint_a = g_a - inhibition * adjoint_y + active * active * omega
    omega = _product(pool, adjoint_a, N, WEIGHTS)
    error_y = recurrence - adjoint_y + excitation * omega + g_y
    error_a = active * active * omega - inhibition * adjoint_y - adjoint_a + g_a
    size_y = tl.maximum(tl.maximum(_length(g_y), _length(adjoint_y)), _TINY)
    size_a = tl.maximum(tl.maximum(_length(g_a), _length(adjoint_a)), _TINY)
    error_y, error_a = _length(error_y) / size_y, _length(error_a) / size_a
    solved = tl.sqrt(error_y * error_y + error_a * error_a) <= accepted

    tl.store(adjoints_y + sample * n + index, adjoint_y, mask=inside)
    tl.store(adjoints_a + sample * n + index, adjoint_a, mask=inside)
    tl.store(gained + sample * n + index, gain * adjoint_y, mask=inside)
    tl.store(pooled + sample * n + index, active * active * a, mask=inside)
    tl.store(failed + sample, ~solved)
