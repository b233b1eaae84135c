"""Acceleration of a fixed-point iteration, each sample of the batch by itself."""

import torch
from torch import Tensor

__all__ = ["CURVATURE_PART", "SecantAccelerator", "rounding_part"]

CURVATURE_PART = 0.3


class SecantAccelerator:
    """Anderson acceleration with an orthonormal basis of residual differences.

    The differences of the last ``depth`` residuals are kept orthonormal (Gram-Schmidt) together
    with the steps that made them, so that a step costs a few products and no linear system. For
    a linear problem this is the truncated generalized conjugate residual method (Washio and
    Oosterlee, ETNA 6, 1997, for the nonlinear one). The unknowns should be of the order of 1:
    nothing here guards the squares of their differences against the limits of their dtype.

    A difference of residuals counts if at least ``smallest_part`` of it is new to the basis. The
    rest that is left of others is magnified: in a linear problem that is right down to rounding
    (``rounding_part``), but in a nonlinear one it is mostly curvature, and can throw an iteration
    off at any distance from the solution (``CURVATURE_PART``).
    """

    def __init__(self, depth: int, smallest_part: float) -> None:
        self.depth, self.smallest_part = depth, smallest_part
        self._count = 0
        # Rows (r, x + r), side by side so that one product serves both: the last one, and the
        # basis (B, depth, 2n) of their differences, orthonormal in the first half.
        self._last: Tensor | None = None
        self._basis: Tensor
        # Scalar products (B, depth) of the last residual with the basis.
        self._overlap: Tensor

    def propose(self, x: Tensor, residual: Tensor) -> Tensor:
        """The next iterate from ``x`` and its residual ``g(x) - x``, both ``(B, n)``."""
        n = x.shape[-1]
        pair = torch.cat([residual, x + residual], -1)
        last, self._last = self._last, pair
        if last is None:
            self._basis = x.new_zeros(x.shape[0], self.depth, 2 * n)
            self._overlap = x.new_zeros(x.shape[0], self.depth)
            return pair[:, n:]
        difference = pair - last
        length = torch.linalg.vector_norm(difference[:, :n], dim=-1, keepdim=True)
        used, oldest = min(self._count, self.depth), self._count % self.depth
        self._count += 1
        if used:
            basis, known = self._basis[:, :used], self._overlap[:, :used]
            overlap = (basis[..., :n] * residual.unsqueeze(1)).sum(-1)
            change = overlap - known
            self._overlap[:, :used] = overlap
            if used == self.depth:
                overlap[:, oldest] = 0.0
            # What the basis knows of the difference, and of the residual, in one product.
            spanned = torch.bmm(torch.stack([change, overlap], 1), basis)
            difference = difference - spanned[:, 0]
            proposal = pair[:, n:] - spanned[:, 1, n:]
        else:
            proposal = pair[:, n:]
        norm = torch.linalg.vector_norm(difference[:, :n], dim=-1, keepdim=True)
        # A difference that the basis spans already is noise: it must not steer a step.
        useful = norm > self.smallest_part * length
        newest = difference * torch.where(useful, norm.reciprocal(), 0.0)
        overlap = (newest[:, :n] * residual).sum(-1, keepdim=True)
        self._basis[:, oldest], self._overlap[:, oldest] = newest, overlap[:, 0]
        return torch.addcmul(proposal, overlap, newest[:, n:], value=-1.0)

    def select(self, keep: Tensor) -> None:
        """Go on with the samples that the mask ``keep`` of shape ``(B,)`` chooses."""
        if self._last is not None:
            self._last = self._last[keep]
            self._basis, self._overlap = self._basis[keep], self._overlap[keep]


def rounding_part(dtype: torch.dtype) -> float:
    """The part of a difference below which it is rounding noise."""
    return 1e3 * torch.finfo(dtype).eps
