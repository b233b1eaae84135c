"""Proofs that all eigenvalues of a matrix lie left of a line, by matrix products.

With ``s > 0`` the Cayley transform ``C = (s I + J) (s I - J)^-1 = 2 s (s I - J)^-1 - I`` takes the
left half plane into the unit disc: ``J`` is stable iff the eigenvalues of ``C`` lie there.
``|C^(2^k)| < 1`` for some ``k`` proves it, and ``|trace C^(2^k)| > N`` the contrary; each squaring
is one product. A bound of the rounding errors is carried along, so that a proof is one whatever the
matrix is.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Resolvent",
    "Verdict",
    "frobenius",
    "inverse",
    "resolvent",
    "rounding",
    "spectral_bound",
    "spectral_radius",
]

_MOST_SQUARINGS = 40
# Torch's batched LU factorization of larger matrices fails where `set_num_threads` was called.
_LARGEST_BATCHED = 128


class Verdict(IntEnum):
    """On the eigenvalues of a matrix: all inside (or left), one outside, or not decided."""

    INSIDE = 1
    UNDECIDED = 0
    OUTSIDE = -1


class Resolvent(NamedTuple):
    """``(shift I - J)^-1`` of matrices ``(B, N, N)``."""

    shift: Tensor
    """``(B,)``"""
    inverse: Tensor
    error: Tensor
    """Bound of the inverse's error by the Frobenius norm, ``(B,)``; infinite where unknown."""

    def transform(self, line: Tensor) -> tuple[Tensor, Tensor]:
        """Cayley transform of ``J - line I``, ``line < shift``, and a bound of its error."""
        scale = self.shift - line
        transform = (2.0 * scale)[:, None, None] * self.inverse
        transform.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        unit = torch.finfo(transform.dtype).eps
        return transform, 2.0 * scale * self.error + 4.0 * unit * (frobenius(transform) + 1.0)


def frobenius(matrix: Tensor) -> Tensor:
    """Frobenius norms ``(B,)``."""
    return torch.linalg.vector_norm(matrix, dim=(-2, -1))


def rounding(size: int, dtype: torch.dtype) -> float:
    """``g``: a product of matrices, inner dimension ``size``, is exact to ``g |A| |B|``.

    By Frobenius norms.
    """
    return (size + 8) * torch.finfo(dtype).eps


def resolvent(matrix: Tensor, shift: Tensor) -> Resolvent:
    """Invert ``shift I - J`` for Jacobians in the order ``(y, a)``.

    By blocks, that of the inhibitory neurons first, which takes half the time of a factorization.
    The residual tells what the inverse is worth.
    """
    n = matrix.shape[-1] // 2
    shifted = -matrix
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    inhibition = shifted[:, :n, n:].diagonal(dim1=-2, dim2=-1)
    inner = inverse(shifted[:, n:, n:])
    below = inner @ shifted[:, n:, :n]
    outer = inverse(shifted[:, :n, :n] - inhibition.unsqueeze(-1) * below)
    right = (outer * inhibition.unsqueeze(-2)) @ inner
    found = torch.empty_like(matrix)
    found[:, :n, :n] = outer
    found[:, :n, n:] = -right
    found[:, n:, :n] = -(below @ outer)
    found[:, n:, n:] = torch.baddbmm(inner, below, right)
    residual = shifted @ found
    residual.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    size = frobenius(found)
    defect = frobenius(residual) + rounding(2 * n, matrix.dtype) * frobenius(shifted) * size
    error = torch.where(defect < 0.5, size * defect / (1.0 - defect), torch.inf)
    return Resolvent(shift, found, error)


def inverse(matrix: Tensor) -> Tensor:
    """About the inverse of matrices ``(B, N, N)``, without a word where there is none."""
    if matrix.shape[-1] <= _LARGEST_BATCHED:
        return torch.linalg.inv_ex(matrix)[0]
    return torch.stack([torch.linalg.inv_ex(one)[0] for one in matrix])


def spectral_bound(matrix: Tensor, length: Tensor) -> Tensor:
    """A bound ``(B,)`` of the largest singular value; ``length`` is the Frobenius norm."""
    entries = matrix.abs()
    bound = (entries.sum(-1).amax(-1) * entries.sum(-2).amax(-1)).sqrt()
    return torch.minimum(bound, length) * (1.0 + rounding(matrix.shape[-1], matrix.dtype))


def spectral_radius(power: Tensor, error: Tensor) -> Tensor:
    """Where matrices ``(B, N, N)`` have their eigenvalues, ``(B,)`` :class:`Verdict`: in the disc?

    ``error`` ``(B,)`` bounds how far each is from the matrix that the verdict is about.
    """
    size = power.shape[-1]
    g = rounding(size, power.dtype)
    verdict = torch.full((power.shape[0],), int(Verdict.UNDECIDED), device=power.device)
    index = torch.arange(power.shape[0], device=power.device)
    for _ in range(_MOST_SQUARINGS):
        length = frobenius(power)
        norm = spectral_bound(power, length)
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).abs()
        inside = norm + error < 1.0
        outside = trace - size**0.5 * error - g * length > size
        verdict[index[inside]] = int(Verdict.INSIDE)
        verdict[index[outside]] = int(Verdict.OUTSIDE)
        going = ~(inside | outside) & (error < size)
        if not going.any():
            break
        error = error * (2.0 * norm + error) + g * length.square()
        if not going.all():
            index, power, error = index[going], power[going], error[going]
        power = power @ power
    return verdict
