"""Where the eigenvalues of a matrix are, by its computed eigenvectors and Gershgorin's discs.

In the basis ``V`` of its eigenvectors a matrix ``J`` is diagonal but for rounding, of which this
keeps count: the discs around the diagonal of ``V^-1 J V`` hold the exact eigenvalues. They are
small unless eigenvectors are close to dependent.
"""

import torch
from torch import Tensor

from .cayley import Verdict, frobenius, inverse, rounding

__all__ = ["side_of_zero"]


def side_of_zero(matrix: Tensor) -> Tensor:
    """Which matrices ``(B, N, N)`` have all eigenvalues left of 0: :class:`Verdict` ``(B,)``."""
    centre, radius = _discs(matrix)
    inside = (centre.real + radius < 0).all(-1)
    right = centre.real - radius > 0
    # Discs that meet no others hold as many eigenvalues as there are of them.
    distance = (centre.unsqueeze(-1) - centre.unsqueeze(-2)).abs()
    meets = ~(distance > radius.unsqueeze(-1) + radius.unsqueeze(-2))
    apart = ~(meets & (right.unsqueeze(-1) != right.unsqueeze(-2))).any(-1).any(-1)
    outside = right.any(-1) & apart
    verdict = torch.where(inside, int(Verdict.INSIDE), int(Verdict.UNDECIDED))
    return torch.where(outside, int(Verdict.OUTSIDE), verdict)


def _discs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Centres, complex, and radii ``(B, N)``; infinite where nothing is known."""
    size = matrix.shape[-1]
    _, vectors = torch.linalg.eig(matrix)
    inverted = inverse(vectors)
    form = inverted @ (matrix.to(vectors.dtype) @ vectors)
    defect = inverted @ vectors
    defect.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    # Bounds of rows, by Euclidean norms; a complex product is four real ones.
    g = 4.0 * rounding(size, matrix.dtype)
    rows = torch.linalg.vector_norm(inverted, dim=-1)
    length = frobenius(vectors).unsqueeze(-1)
    dependence = torch.linalg.vector_norm(defect, dim=-1) + g * rows * length
    error = 2.0 * g * rows * length * frobenius(matrix).unsqueeze(-1)
    whole = torch.linalg.vector_norm(dependence, dim=-1, keepdim=True)
    image = frobenius(form).unsqueeze(-1) + torch.linalg.vector_norm(error, dim=-1, keepdim=True)
    error = error + dependence * image / (1.0 - whole)
    centre = form.diagonal(dim1=-2, dim2=-1)
    radius = form.abs().sum(-1) - centre.abs() + size**0.5 * error
    known = (whole < 0.5) & torch.isfinite(radius) & torch.isfinite(centre.real)
    return torch.where(known, centre, 0.0), torch.where(known, radius, torch.inf)
