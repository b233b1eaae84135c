"""Matrices and vectors of one circuit in registers, and products of them.

Matrices come padded, three of them one after another: ``Wr``, ``W`` and the preconditioner's
inverse. A product contracts their first dimension, which lies within a thread, so that they come
transposed for a product with the matrix, and as they are for one with its transpose.
"""

import triton
import triton.language as tl

# The smallest normal number of float32.
TINY = tl.constexpr(1.1754944e-38)


@triton.jit
def _load_columns(pointer, first, N: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], first + tl.arange(0, COLUMNS)[None, :]
    return tl.load(pointer + row * N + column)


@triton.jit
def load_matrix(pointer, N: tl.constexpr, RESIDENT: tl.constexpr):
    """The matrix ``(N, N)`` in registers or, where it does not fit, its address."""
    return _load_columns(pointer, 0, N, N) if RESIDENT else pointer


@triton.jit
def multiply(matrix, x, N: tl.constexpr, RESIDENT: tl.constexpr):
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
def is_nonnegative(matrix, N: tl.constexpr, RESIDENT: tl.constexpr):
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
def load_vector(pointer, sample, stride, n, other, N: tl.constexpr):
    index = tl.arange(0, N)
    return tl.load(pointer + sample * stride + index, mask=index < n, other=other)


@triton.jit
def magnitude(x):
    """``|x|``, infinite for NaN: a maximum of NaN is whatever the compiler makes of it."""
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def length_of(x):
    return tl.sqrt(tl.sum(x * x, axis=0))
