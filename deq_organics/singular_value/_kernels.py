"""The largest singular value of a matrix, by repeated squaring, as a Triton kernel."""

import triton
import triton.language as tl

_TINY = tl.constexpr(1.1754944e-38)
# The sum of the squared eigenvalues, of sum 1, where the second is at most 5e-6 of the first.
_PURE = tl.constexpr(0.99999)
_SQUARINGS = tl.constexpr(24)


@triton.jit
def _load(pointer, n, N: tl.constexpr):
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    return tl.load(pointer + row * n + column, mask=(row < n) & (column < n), other=0.0)


@triton.jit
def _normalized(x):
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), _TINY)


@triton.jit
def scale_kernel(weight, scale, slope, right, n, bound, N: tl.constexpr):
    """``scale = min(1, bound / sigma)``; its gradient is the outer product of slope and right.

    Squaring ``W W^T`` over and over leaves the projector on its leading eigenvectors. Rounding
    turns them by float32's rounding unit over the relative gap to the next singular value, which
    shows in the gradient; ``sigma`` itself depends on it in second order only.
    """
    index = tl.arange(0, N)
    inside = index < n
    entries = _load(weight, n, N)
    size = tl.abs(entries)
    rows, columns = tl.max(tl.sum(size, axis=1), axis=0), tl.max(tl.sum(size, axis=0), axis=0)
    unit = 1.0 / tl.maximum(tl.max(tl.max(size, axis=1), axis=0), _TINY)
    entries = entries * unit
    # Hoelder's inequality may prove the bound: then no singular value is needed.
    proved = rows * columns <= bound * bound
    mixed = ~proved
    diagonal = index[:, None] == index[None, :]
    gram = entries
    # Triton 3.6 fails on this loop as a `while`.
    for _ in range(_SQUARINGS):
        if mixed:
            # All but the first are symmetric; the transpose serves both.
            gram = tl.dot(gram, tl.trans(gram), input_precision="tf32x3")
            gram = gram / tl.sum(tl.sum(tl.where(diagonal, gram, 0.0), axis=1), axis=0)
            mixed = tl.sum(tl.sum(gram * gram, axis=1), axis=0) < _PURE

    leading = tl.argmax(tl.sum(tl.where(diagonal, gram, 0.0), axis=0), axis=0)
    u = tl.sum(tl.where((index == leading)[:, None], gram, 0.0), axis=0)
    entries = _load(weight, n, N) * unit
    v = _normalized(tl.sum(entries * _normalized(u)[:, None], axis=0))
    u = _normalized(tl.sum(entries * v[None, :], axis=1))
    v = _normalized(tl.sum(entries * u[:, None], axis=0))
    u = tl.sum(entries * v[None, :], axis=1)
    length = tl.sqrt(tl.sum(u * u, axis=0))
    u = _normalized(u)
    sigma = length / unit
    outside = ~proved & ~(sigma <= bound)
    sigma = tl.where(outside, sigma, bound)
    tl.store(scale, bound / sigma)
    u = u * tl.where(outside, -bound / sigma / sigma, 0.0)
    tl.store(slope + index, u, mask=inside)
    tl.store(right + index, v, mask=inside)
