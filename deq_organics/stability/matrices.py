"""Verdicts on matrices of any kind, each of them proved, and their leading eigenvalues."""

import torch
from torch import Tensor

from .cayley import Resolvent, Verdict, frobenius, inverse, rounding, spectral_radius
from .discs import side_of_zero

__all__ = ["rightmost", "side_of_matrices"]

_SWEEPS = 8
# Largest factor of a sweep.
_MOST = 2.0**20
# Elements of the matrices that are judged together.
_ELEMENTS = 2**22


def side_of_matrices(matrix: Tensor) -> Tensor:
    """Whether all eigenvalues of matrices ``(B, N, N)`` lie in the left half plane.

    :class:`Verdict` ``(B,)``. What is not ``UNDECIDED`` is proved for the matrix as it is given: by
    powers of its Cayley transform (:mod:`.cayley`), or by discs around computed eigenvalues
    (:mod:`.discs`). One that is not finite is undecided.
    """
    verdicts = [_verdict(part) for part in _portions(matrix.detach().double())]
    return torch.cat(verdicts)


def rightmost(matrix: Tensor) -> Tensor:
    """The eigenvalue with the largest real part of matrices ``(B, N, N)``, complex128 ``(B,)``.

    Of a conjugate pair the one with the nonnegative imaginary part; NaN where a matrix is not
    finite, or where the eigensolver does not converge. All eigenvalues are computed, of the
    balanced matrix.
    """
    found = []
    for part in _portions(matrix.detach().double()):
        scaled, unit = _balanced(part)
        spectrum = _spectra(scaled)
        leading = spectrum.gather(-1, spectrum.real.argmax(-1, keepdim=True)).squeeze(-1) * unit
        found.append(torch.complex(leading.real, leading.imag.abs()))
    return torch.cat(found)


def _spectra(matrix: Tensor) -> Tensor:
    """All eigenvalues of matrices ``(B, N, N)``; NaN where the eigensolver does not converge."""
    try:
        return torch.linalg.eigvals(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrix.shape[0] == 1:
            return torch.full_like(matrix[:, 0], torch.nan, dtype=torch.complex128)
    # One that fails stops its whole batch.
    return torch.cat([_spectra(one) for one in matrix.split(1)])


def _portions(matrix: Tensor) -> tuple[Tensor, ...]:
    return matrix.split(max(1, _ELEMENTS // max(1, matrix.shape[-1] ** 2)))


def _balanced(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Similar matrices with rows and columns of alike size, and their units ``(B,)``.

    Scales are powers of two, which round nothing. What is not finite becomes 0, in the unit NaN.
    """
    finite = torch.isfinite(matrix).all(-1).all(-1)
    matrix = torch.where(finite[:, None, None], matrix, 0.0)
    size = matrix.abs().amax((-2, -1))
    known = finite & torch.isfinite(size)
    unit = torch.where(size > 0, size, 1.0).log2().round().exp2()
    matrix = matrix / unit[:, None, None]
    for _ in range(_SWEEPS):
        rows = _off_diagonal(matrix, -1)
        columns = _off_diagonal(matrix, -2)
        ratio = torch.where((rows > 0) & (columns > 0), rows / columns, 1.0)
        # A fourth root, where one row alone would want a square root: all are scaled at once.
        scale = ratio.pow(0.25).clamp(1.0 / _MOST, _MOST).log2().round().exp2()
        if bool((scale == 1).all()):
            break
        matrix = matrix / scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return matrix, torch.where(known, unit, torch.nan)


def _off_diagonal(matrix: Tensor, dim: int) -> Tensor:
    """Lengths ``(B, N)`` of rows or columns without the diagonal."""
    diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    return torch.linalg.vector_norm(matrix - diagonal, dim=dim)


def _verdict(matrix: Tensor) -> Tensor:
    scaled, unit = _balanced(matrix)
    rows = torch.linalg.vector_norm(scaled, dim=-1)
    # About in the middle between slow and fast modes, which then take few squarings alike.
    shift = (rows.amax(-1) * rows.amin(-1)).sqrt()
    found = _resolvent(scaled, torch.where(shift > 0, shift, 1.0))
    verdict = spectral_radius(*found.transform(torch.zeros_like(shift)))
    verdict = torch.where(unit.isnan(), int(Verdict.UNDECIDED), verdict)
    left = ((verdict == Verdict.UNDECIDED) & ~unit.isnan()).nonzero().squeeze(-1)
    if left.numel():
        verdict[left] = _by_discs(scaled[left])
    return verdict


def _by_discs(matrix: Tensor) -> Tensor:
    """As :func:`side_of_zero`; undecided where the eigensolver does not converge."""
    try:
        return side_of_zero(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrix.shape[0] == 1:
            return torch.full((1,), int(Verdict.UNDECIDED), device=matrix.device)
    return torch.cat([_by_discs(one) for one in matrix.split(1)])


def _resolvent(matrix: Tensor, shift: Tensor) -> Resolvent:
    """``(shift I - J)^-1`` and what its residual says that it is worth."""
    shifted = -matrix
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    found = inverse(shifted)
    residual = shifted @ found
    residual.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    size = frobenius(found)
    slack = rounding(matrix.shape[-1], matrix.dtype) * frobenius(shifted) * size
    defect = frobenius(residual) + slack
    error = torch.where(defect < 0.5, size * defect / (1.0 - defect), torch.inf)
    return Resolvent(shift, found, error)
