"""What the curvature of the misfit says: identified directions, covariance, what is left to go."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Curvature", "examine"]

# A direction is identified where its singular value, of the matrix with columns of length 1, is
# above this: derivatives through steady states are exact to some 1e-10.
_SMALLEST = 1e-7
# Part of a parameter, of the length of a direction that is not identified, which counts.
_SHARE = 1e-3


class Curvature(NamedTuple):
    """At the end of a search, of the parameters that are free to move."""

    identified: Tensor
    """Boolean ``(P,)``."""
    inverse: Tensor
    """Of the Hessian, on what is identified, ``(P, P)``; NaN elsewhere."""
    left: float
    """How much of the residual a last step would take away, as a length."""
    is_minimum: bool
    """Whether the Hessian is positive in the directions that are identified."""


def examine(jacobian: Tensor, residual: Tensor, hessian: Tensor | None) -> Curvature:
    """Directions, inverse and remaining step of least squares.

    Args:
        jacobian: Of the residual by the free parameters, ``(M, P)``.
        residual: ``(M,)``.
        hessian: Of half of the residual's square, ``(P, P)``; None is ``J^T J``.
    """
    scale = torch.linalg.vector_norm(jacobian, dim=0)
    unmoved = scale == 0
    scale = torch.where(unmoved, 1.0, scale)
    unit = jacobian / scale
    left_vectors, singular, rows = torch.linalg.svd(unit, full_matrices=False)
    # Fewer values than parameters leave directions that the SVD does not list.
    values, vectors = _complete(singular, rows)
    known = values > _SMALLEST
    share = vectors[:, ~known].abs().amax(-1) if bool((~known).any()) else torch.zeros_like(scale)
    identified = ~unmoved & (share < _SHARE)
    # Second derivatives count in the directions that the data see: in the others they are rounding.
    seen = vectors[:, known]
    curved = torch.diag(values[known].square())
    if hessian is not None:
        curved = seen.mT @ (hessian / scale / scale.unsqueeze(-1)) @ seen
    is_minimum = bool((torch.linalg.eigvalsh(0.5 * (curved + curved.mT)) > 0).all())
    inverse = torch.full_like(vectors, torch.nan)
    if is_minimum:
        inverse = seen @ torch.linalg.solve(curved, seen.mT) / scale / scale.unsqueeze(-1)
    lost = ~identified
    inverse = torch.where(lost | lost.unsqueeze(-1), torch.nan, inverse)
    projected = left_vectors[:, singular > _SMALLEST].mT @ residual
    return Curvature(identified, inverse, float(torch.linalg.vector_norm(projected)), is_minimum)


def _complete(singular: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right vectors ``(P, P)`` in columns, zeros for those without a value."""
    count = rows.shape[-1]
    vectors = torch.linalg.svd(rows, full_matrices=True)[2] if len(rows) < count else rows
    if len(rows) < count:
        vectors = torch.cat([rows, vectors[len(rows) :]])
    return torch.cat([singular, singular.new_zeros(count - len(singular))]), vectors.mT
