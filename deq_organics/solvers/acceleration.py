"""Acceleration of a fixed-point iteration, each sample of the batch by itself."""

import torch
from torch import Tensor

__all__ = ["SecantAccelerator"]


class SecantAccelerator:
    """Anderson acceleration with an orthonormal basis of residual differences.

    The differences of the last ``depth`` residuals are kept orthonormal (modified Gram-Schmidt)
    together with the steps that made them, so that a step costs a few products and no linear
    system. For a linear problem this is the truncated generalized conjugate residual method
    (Washio and Oosterlee, ETNA 6, 1997, for the nonlinear one).
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._count = 0
        # Rows (r, x + r), side by side so that one product serves both: the last one, and the
        # basis (B, depth, 2n) of their differences, orthonormal in the first half.
        self._last: Tensor | None = None
        self._basis: Tensor

    def propose(self, x: Tensor, residual: Tensor) -> Tensor:
        """The next iterate from ``x`` and its residual ``g(x) - x``, both ``(B, n)``."""
        target = x + residual
        pair = torch.cat([residual, target], -1)
        if self._last is None:
            self._basis = x.new_zeros(x.shape[0], self.depth, 2 * x.shape[1])
        else:
            self._remember(pair - self._last)
        self._last = pair
        if self._count == 0:
            return target
        basis = self._basis[:, : min(self._count, self.depth)]
        weight = _products(basis, residual)
        return torch.baddbmm(target.unsqueeze(1), weight, basis[..., x.shape[1] :], alpha=-1)[:, 0]

    def select(self, keep: Tensor) -> None:
        """Go on with the samples that the mask ``keep`` of shape ``(B,)`` chooses."""
        if self._last is not None:
            self._last, self._basis = self._last[keep], self._basis[keep]

    def _remember(self, difference: Tensor) -> None:
        n = difference.shape[-1] // 2
        length = difference[:, :n].norm(dim=-1, keepdim=True)
        if self._count:
            basis = self._basis[:, : min(self._count, self.depth)]
            overlap = _products(basis, difference[:, :n])
            difference = torch.baddbmm(difference.unsqueeze(1), overlap, basis, alpha=-1)[:, 0]
        norm = difference[:, :n].norm(dim=-1, keepdim=True)
        # A difference that the basis already spans is rounding noise: it must not steer a step.
        useful = norm > 1e3 * torch.finfo(norm.dtype).eps * length
        scaled = difference * norm.reciprocal()
        self._basis[:, self._count % self.depth] = torch.where(useful, scaled, 0.0)
        self._count += 1


def _products(basis: Tensor, vector: Tensor) -> Tensor:
    """Scalar products ``(B, 1, k)`` of ``vector`` ``(B, n)`` with the basis' first halves."""
    return (basis[..., : vector.shape[-1]] * vector.unsqueeze(1)).sum(-1).unsqueeze(1)
