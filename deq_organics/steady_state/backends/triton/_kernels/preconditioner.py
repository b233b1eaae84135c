"""The preconditioner of ``methods/preconditioner.py``: how it is made, and how it is applied."""

import triton
import triton.language as tl

from .products import multiply

# As in `methods/preconditioner.py`.
_SMALLEST_FACTOR = tl.constexpr(1 / 16)
_LARGEST_FACTOR = tl.constexpr(1e4)
_LARGEST_INVERSE = tl.constexpr(1e4)


@triton.jit
def prepare_kernel(
    inhibitory_drive,
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
    """``Preconditioner`` for one shared ``inhibitory_drive``.

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
        c = tl.load(inhibitory_drive + index, mask=inside, other=1.0)
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
def row_factor(diagonal, reference, gain):
    """The factor of each row that makes the preconditioner exact for a diagonal ``Wr``."""
    factor = (1.0 - (1.0 - reference) * diagonal) / (1.0 - gain * diagonal)
    return tl.minimum(tl.maximum(factor, _SMALLEST_FACTOR), _LARGEST_FACTOR)


@triton.jit
def precondition(
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
    solution = tl.where(firing, multiply(inverse, factor * active, N, INVERSE), 0.0)
    left = active - solution + gain * multiply(recurrent, solution, N, WEIGHTS)
    left = tl.where(firing, left, 0.0)
    refined = solution + multiply(inverse, factor * left, N, INVERSE)
    return tl.where(firing, refined, right)


@triton.jit
def precondition_transposed(
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
    solution = tl.where(firing, factor * multiply(inverse, active, N, INVERSE), 0.0)
    left = active - solution + multiply(recurrent, gain * solution, N, WEIGHTS)
    left = tl.where(firing, left, 0.0)
    refined = solution + factor * multiply(inverse, left, N, INVERSE)
    return tl.where(firing, refined, right)
