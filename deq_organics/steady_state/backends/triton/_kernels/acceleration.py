"""The secant steps of ``methods/acceleration.py``."""

import triton
import triton.language as tl

from .products import length_of

# As in `methods/acceleration.py`, for float32.
CURVATURE_PART, ROUNDING_PART = tl.constexpr(0.3), tl.constexpr(1.1920929e-04)


@triton.jit
def propose(
    x, residual, step, last_r, last_x, basis_r, basis_x, DEPTH: tl.constexpr, PART: tl.constexpr
):
    """``SecantAccelerator.propose``, and its memory for the next step.

    The last pair ``(r, x + r)`` as ``last_r`` and ``last_x``, ``(N,)``, and the orthonormal basis
    of their differences as ``basis_r`` and ``basis_x``, ``(DEPTH, N)``.
    """
    moved = x + residual
    difference_r, difference_x = residual - last_r, moved - last_x
    length = length_of(difference_r)
    oldest = tl.arange(0, DEPTH) == (step - 1) % DEPTH
    change = tl.sum(basis_r * difference_r[None, :], axis=1)
    overlap = tl.sum(basis_r * residual[None, :], axis=1)
    overlap = tl.where(oldest, 0.0, overlap)
    difference_r -= tl.sum(basis_r * change[:, None], axis=0)
    difference_x -= tl.sum(basis_x * change[:, None], axis=0)
    proposal = moved - tl.sum(basis_x * overlap[:, None], axis=0)
    norm = length_of(difference_r)
    useful = (step > 0) & (norm > length * PART)
    scale = tl.where(useful, 1.0 / tl.where(useful, norm, 1.0), 0.0)
    newest_r, newest_x = difference_r * scale, difference_x * scale
    basis_r = tl.where(oldest[:, None], newest_r[None, :], basis_r)
    basis_x = tl.where(oldest[:, None], newest_x[None, :], basis_x)
    proposal -= tl.sum(newest_r * residual, axis=0) * newest_x
    return proposal, residual, moved, basis_r, basis_x
