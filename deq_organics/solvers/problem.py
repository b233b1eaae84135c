"""A batch of steady-state problems with one flat batch dimension, as every solver sees them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations

__all__ = ["Problem"]


class Problem(NamedTuple):
    """``B`` circuits of ``n`` neurons of each type; shared tensors have batch size 1 or none."""

    input_drive: Tensor
    """``(B, n)``"""
    semisaturation: Tensor
    """``(B, n)`` or ``(1, n)``"""
    recurrent_weight: Tensor | None
    """``(B, n, n)``, ``(n, n)`` or None for the identity"""
    normalization_weight: Tensor
    """``(B, n, n)`` or ``(n, n)``"""
    tau_y: Tensor
    """``(B, n)`` or ``(1, n)``"""
    tau_a: Tensor
    """``(B, n)`` or ``(1, n)``"""
    exponent: float
    rectified: bool

    @classmethod
    def flatten(
        cls,
        input_drive: Tensor,
        semisaturation: Tensor,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        tau_y: Tensor,
        tau_a: Tensor,
        exponent: float,
        rectified: bool,
    ) -> "Problem":
        """From tensors with any leading dimensions, ``input_drive`` having all of them.

        Tensors that the whole batch shares stay shared.
        """
        n = input_drive.shape[-1]
        batch = input_drive.shape[:-1]

        def vector(tensor: Tensor) -> Tensor:
            if all(size == 1 for size in tensor.shape[:-1]):
                return tensor.expand(*tensor.shape[:-1], n).reshape(1, n)
            return tensor.expand(*batch, n).reshape(-1, n)

        def matrix(tensor: Tensor) -> Tensor:
            if all(size == 1 for size in tensor.shape[:-2]):
                return tensor.reshape(n, n)
            return tensor.expand(*batch, n, n).reshape(-1, n, n)

        return cls(
            input_drive.reshape(-1, n),
            vector(semisaturation),
            None if recurrent_weight is None else matrix(recurrent_weight),
            matrix(normalization_weight),
            vector(tau_y),
            vector(tau_a),
            exponent,
            rectified,
        )

    @property
    def batch_size(self) -> int:
        return self.input_drive.shape[0]

    def select(self, index: Tensor) -> "Problem":
        """The circuits chosen by a boolean mask ``(B,)`` or by indices."""

        def pick(tensor: Tensor, batched_ndim: int) -> Tensor:
            if tensor.ndim < batched_ndim or tensor.shape[0] != self.batch_size:
                return tensor
            return tensor[index]

        wr = self.recurrent_weight
        return self._replace(
            input_drive=self.input_drive[index],
            semisaturation=pick(self.semisaturation, 2),
            recurrent_weight=None if wr is None else pick(wr, 3),
            normalization_weight=pick(self.normalization_weight, 3),
            tau_y=pick(self.tau_y, 2),
            tau_a=pick(self.tau_a, 2),
        )

    def to(self, dtype: torch.dtype) -> "Problem":
        wr = self.recurrent_weight
        return self._replace(
            input_drive=self.input_drive.to(dtype),
            semisaturation=self.semisaturation.to(dtype),
            recurrent_weight=None if wr is None else wr.to(dtype),
            normalization_weight=self.normalization_weight.to(dtype),
            tau_y=self.tau_y.to(dtype),
            tau_a=self.tau_a.to(dtype),
        )

    def recurrent_matrix(self) -> Tensor:
        """``Wr`` as a matrix, also where it is the identity."""
        if self.recurrent_weight is not None:
            return self.recurrent_weight
        d = self.input_drive
        return torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)

    def residual(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``(tau_y dy/dt, tau_a da/dt)``."""
        return equations.residual(y, a, *self[:4], self.exponent, self.rectified)

    def jacobian(self, y: Tensor, a: Tensor, *, unit_tau: bool = False) -> Tensor:
        """Jacobian ``(B, 2n, 2n)`` of the vector field, or of ``residual`` if ``unit_tau``."""
        tau_y, tau_a = (1.0, 1.0) if unit_tau else (self.tau_y, self.tau_a)
        weights = (self.recurrent_weight, self.normalization_weight)
        return equations.jacobian(y, a, *weights, tau_y, tau_a, self.exponent, self.rectified)

    def relative_residual(self, y: Tensor, a: Tensor) -> Tensor:
        """Backward error ``(B,)``: the larger of both equations' residuals, each by its scale.

        ``max(|r_y| / max(|y|, |d|), |r_a| / |a|)`` with Euclidean norms: free of units and
        unchanged when a circuit's inputs are rescaled.
        """
        residual_y, residual_a = self.residual(y, a)
        return torch.maximum(
            residual_y.norm(dim=-1) / self.drive_scale(y),
            residual_a.norm(dim=-1) / a.norm(dim=-1).clamp_min(torch.finfo(a.dtype).tiny),
        )

    def drive_scale(self, y: Tensor) -> Tensor:
        """The scale ``(B,)`` of the principal equation: ``max(|y|, |d|)``."""
        scale = torch.maximum(y.norm(dim=-1), self.input_drive.norm(dim=-1))
        return scale.clamp_min(torch.finfo(y.dtype).tiny)
