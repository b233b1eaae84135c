"""The leading eigenvalues of many Jacobians, each proved to be the rightmost.

The Cayley transform of ``J - line I`` takes eigenvalues left of the line into the unit disc, others
out of it. A high power ``P`` of it is a filter that leaves those near the line and right of it: an
orthonormal basis ``X`` of a small invariant subspace comes out of a few products with ``P``, and
the eigenvalues there out of a small matrix. ``|P - X X^T P| < 1`` proves that all others lie left
of the line; where the leading one does not, it is the rightmost. A bound of the rounding errors is
carried along, as in :mod:`.cayley`.

So an eigenvalue found here is exact for a matrix that differs from ``J`` by what rounding amounts
to, which is what a dense eigensolver achieves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .balanced import Balanced
from .cayley import frobenius, resolvent, rounding, spectral_bound
from .krylov import arnoldi

__all__ = ["SMALLEST", "Guess", "first_guess", "rightmost_eigenvalues"]

# Smaller Jacobians are decomposed in less time.
SMALLEST = 64
# Of the Krylov space for the first guess, and of the block that is filtered.
_KRYLOV_DIMENSION, _BLOCK = 28, 16
_SQUARINGS, _PRODUCTS, _ATTEMPTS = 4, 6, 2
# Where the line is: left of the leading eigenvalue by this part of the width of what is filtered.
_LINE = 0.15
# Residual of an invariant subspace, and how far right of the leading eigenvalue the line may be.
_RESIDUAL, _TOLERANCE = 1e-10, 1e-7
_DEPENDENT = 1e-7
_SEED = 15485863


class Guess(NamedTuple):
    """Each ``(B,)``."""

    edge: Tensor
    """Real part of the leading eigenvalue."""
    width: Tensor
    """Distance from there within which a few eigenvalues lie."""
    extent: Tensor
    """Size of the spectrum."""

    def select(self, index: Tensor) -> "Guess":
        return Guess(*(part[index] for part in self))

    def divided(self, unit: Tensor) -> "Guess":
        return Guess(*(part / unit for part in self))


def first_guess(jacobian: Balanced) -> Guess:
    """By Arnoldi's method, which tells about the edge of the spectrum unless it is stiff."""
    krylov = arnoldi(jacobian.apply, jacobian.pool, _KRYLOV_DIMENSION)
    hessenberg = krylov.hessenberg[:, :-1]
    finite = torch.isfinite(hessenberg).all((-2, -1), keepdim=True)
    ritz = torch.linalg.eigvals(torch.where(finite, hessenberg, 0.0))
    extent = (ritz - ritz.real.amax(-1, keepdim=True)).abs().amax(-1)
    return _guess(ritz, 6, extent)


def rightmost_eigenvalues(matrix: Tensor, guess: Guess) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(B,)`` with the largest real parts, complex, and which of them are proved.

    ``matrix`` ``(B, N, N)`` are Jacobians in balanced coordinates, their entries of the order of 1.
    """
    leading = torch.zeros(matrix.shape[0], dtype=torch.complex128, device=matrix.device)
    proved = torch.zeros(matrix.shape[0], dtype=torch.bool, device=matrix.device)
    left = torch.arange(matrix.shape[0], device=matrix.device)
    for _ in range(_ATTEMPTS):
        usable = torch.isfinite(guess.edge) & (guess.width > 0) & (guess.extent > 0)
        left, guess = left[usable], guess.select(usable)
        if left.numel() == 0:
            break
        found, certain, guess = _attempt(matrix[left], guess)
        leading[left[certain]], proved[left[certain]] = found[certain], True
        left, guess = left[~certain], guess.select(~certain)
    return leading, proved


def _guess(ritz: Tensor, few: int, extent: Tensor) -> Guess:
    real = ritz.real.sort(-1, descending=True)[0]
    edge = real[:, 0]
    return Guess(edge, edge - real[:, min(few, real.shape[-1]) - 1], extent)


def _attempt(matrix: Tensor, guess: Guess) -> tuple[Tensor, Tensor, Guess]:
    """Leading eigenvalues, which of them are proved, and a better guess for the others."""
    size, order, _ = matrix.shape
    line = guess.edge - _LINE * guess.width
    # The scaling that treats what is close to the line and what is far away alike.
    scale = (guess.width * guess.extent).sqrt()
    inverse = resolvent(matrix, line + scale)
    power, error = inverse.transform(line)
    g = rounding(order, matrix.dtype)
    norms, lengths = [], []
    for _ in range(_SQUARINGS):
        lengths.append(frobenius(power))
        norms.append(spectral_bound(power, lengths[-1]))
        power = power @ power
    usable = torch.isfinite(frobenius(power))
    power = torch.where(usable[:, None, None], power, 0.0)

    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(order, _BLOCK, generator=generator, dtype=torch.float64, device="cpu")
    block = start.to(matrix).expand(size, -1, -1)
    for _ in range(_PRODUCTS):
        block = torch.linalg.qr(power @ block)[0]
    image = matrix @ block
    projected = block.mT @ image
    ritz, basis, held = _converged(projected, block, image)
    subspace, image = block @ basis, image @ basis
    small = subspace.mT @ image
    residual = frobenius(image - subspace @ small)
    # Columns that are 0 must not lead.
    small.diagonal(dim1=-2, dim2=-1).sub_(torch.where(held, 0.0, 2.0 * order))
    values = torch.linalg.eigvals(small)
    leading = values.gather(-1, values.real.argmax(-1, keepdim=True)).squeeze(-1)

    # The subspace is invariant for a matrix within `residual`; that much the transform differs.
    spread = frobenius(inverse.inverse) + inverse.error
    moved = torch.where(
        spread * residual < 0.5, 4.0 * scale * spread.square() * residual, torch.inf
    )
    error = error + moved
    for norm, length in zip(norms, lengths, strict=True):
        error = error * (2.0 * norm + error) + g * length.square()
    rest = power - subspace @ (subspace.mT @ power)
    rest_length = frobenius(rest)
    error = error + g * (frobenius(power) + rest_length)
    proved = usable & held.any(-1) & (residual <= _RESIDUAL * order)
    proved &= spectral_bound(rest, rest_length) + error < 1.0
    proved &= line <= leading.real + _TOLERANCE * guess.extent
    return leading, proved, _guess(ritz, _BLOCK // 2, guess.extent)


def _converged(projected: Tensor, block: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values ``(B, r)`` and an orthonormal basis ``(B, r, r)`` of the vectors that converged.

    The basis is in terms of ``block``, its columns that are not needed are 0; the mask ``(B, r)``
    tells the others.
    """
    count = projected.shape[-1]
    projected = torch.where(torch.isfinite(projected).all((-2, -1), keepdim=True), projected, 0.0)
    values, vectors = torch.linalg.eig(projected)
    misfit = image.to(vectors.dtype) @ vectors - block.to(vectors.dtype) @ (
        vectors * values.unsqueeze(-2)
    )
    good = torch.linalg.vector_norm(misfit, dim=-2) <= _RESIDUAL
    # Of a conjugate pair the real and the imaginary part.
    columns = torch.cat([vectors.real, vectors.imag], -1)
    wanted = torch.cat([good & (values.imag >= 0), good & (values.imag > 0)], -1)
    order = wanted.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :count]
    wanted = wanted.gather(-1, order)
    columns = columns.gather(-1, order.unsqueeze(1).expand(-1, count, -1))
    basis, triangle = torch.linalg.qr(torch.where(wanted.unsqueeze(1), columns, 0.0))
    held = wanted & (triangle.diagonal(dim1=-2, dim2=-1).abs() > _DEPENDENT)
    return values, torch.where(held.unsqueeze(1), basis, 0.0), held
