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
        self._last: tuple[Tensor, Tensor] | None = None
        self._residuals: Tensor
        self._steps: Tensor

    def propose(self, x: Tensor, residual: Tensor) -> Tensor:
        """The next iterate from ``x`` and its residual ``g(x) - x``, both ``(B, n)``."""
        if self._last is None:
            size = (x.shape[0], self.depth, x.shape[1])
            self._residuals, self._steps = x.new_zeros(size), x.new_zeros(size)
        else:
            self._remember(x - self._last[0], residual - self._last[1])
        self._last = (x, residual)
        if self._count == 0:
            return x + residual
        used = min(self._count, self.depth)
        basis, steps = self._residuals[:, :used], self._steps[:, :used]
        weight = torch.bmm(basis, residual.unsqueeze(-1)).mT
        return x + residual - torch.bmm(weight, basis + steps).squeeze(1)

    def select(self, keep: Tensor) -> None:
        """Go on with the samples that the mask ``keep`` of shape ``(B,)`` chooses."""
        if self._last is not None:
            self._last = (self._last[0][keep], self._last[1][keep])
            self._residuals, self._steps = self._residuals[keep], self._steps[keep]

    def _remember(self, step: Tensor, difference: Tensor) -> None:
        used = min(self._count, self.depth)
        length = difference.norm(dim=-1, keepdim=True)
        if used:
            basis, steps = self._residuals[:, :used], self._steps[:, :used]
            overlap = torch.bmm(basis, difference.unsqueeze(-1)).mT
            difference = difference - torch.bmm(overlap, basis).squeeze(1)
            step = step - torch.bmm(overlap, steps).squeeze(1)
        norm = difference.norm(dim=-1, keepdim=True)
        # A difference that the basis already spans is rounding noise: it must not steer a step.
        useful = norm > 1e3 * torch.finfo(step.dtype).eps * length
        scale = torch.where(useful, norm.reciprocal(), 0.0)
        slot = self._count % self.depth
        self._residuals[:, slot] = torch.where(useful, difference * scale, 0.0)
        self._steps[:, slot] = torch.where(useful, step * scale, 0.0)
        self._count += 1
