"""Wilson and Cowan's populations of excitatory and inhibitory neurons (1972)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..equations import matvec
from .arguments import TensorFields, finite, matrix, positive, vector

__all__ = ["WilsonCowan"]


@dataclass(frozen=True, eq=False)
class WilsonCowan(TensorFields):
    """Excitatory and inhibitory populations, the part of each that is active: ``(e, i)``.

    With ``S(x) = 1 / (1 + exp(-slope (x - threshold))) - 1 / (1 + exp(slope threshold))``::

        tau_e de/dt = -e + (1 - refractory e) S_e(W_ee e - W_ei i + drive_e)
        tau_i di/dt = -i + (1 - refractory i) S_i(W_ie e - W_ii i + drive_i)

    Without drive ``e = i = 0`` is a fixed point. Leading dimensions broadcast.

    Args:
        drive_e: Input of the excitatory populations, ``(..., n)``.
        drive_i: Input of the inhibitory ones, ``(..., k)``.
        weight_ee: ``W_ee``, ``(..., n, n)``.
        weight_ei: ``W_ei``, ``(..., n, k)``, from inhibitory to excitatory ones.
        weight_ie: ``W_ie``, ``(..., k, n)``.
        weight_ii: ``W_ii``, ``(..., k, k)``.
        slope_e: Of ``S_e``, positive: a number or ``(..., n)``; the default is that of 1972.
        slope_i: Of ``S_i``, likewise.
        threshold_e: Of ``S_e``, a number or ``(..., n)``.
        threshold_i: Of ``S_i``, likewise.
        refractory: Part of the time for which an active neuron cannot be activated, at least 0: a
            number or ``(..., 1)``.
        tau_e: Time constants, in any unit of time: a number or ``(..., n)``.
        tau_i: Those of inhibitory populations, ``(..., k)``.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype or value does not fit; the message names the argument.
    """

    drive_e: Tensor
    drive_i: Tensor
    weight_ee: Tensor
    weight_ei: Tensor
    weight_ie: Tensor
    weight_ii: Tensor
    slope_e: Tensor | float = 1.2
    slope_i: Tensor | float = 1.0
    threshold_e: Tensor | float = 2.8
    threshold_i: Tensor | float = 4.0
    refractory: Tensor | float = 1.0
    tau_e: Tensor | float = 1.0
    tau_i: Tensor | float = 1.0

    parts = ("e", "i")
    inputs = ("drive", "inhibitory")

    def __post_init__(self) -> None:
        e, i = vector("drive_e", self.drive_e), vector("drive_i", self.drive_i, like=self.drive_e)
        n, k = e.shape[-1], i.shape[-1]
        for name, shape in (("ee", (n, n)), ("ei", (n, k)), ("ie", (k, n)), ("ii", (k, k))):
            matrix(f"weight_{name}", getattr(self, f"weight_{name}"), shape, e)
        for name, size in (("slope_e", n), ("slope_i", k), ("tau_e", n), ("tau_i", k)):
            positive(name, getattr(self, name), size, e)
        finite("threshold_e", self.threshold_e, n, e)
        finite("threshold_i", self.threshold_i, k, e)
        positive("refractory", self.refractory, 1, e, allow_zero=True)

    def rest(self) -> tuple[Tensor, Tensor]:
        """``e = i = 0``."""
        return torch.zeros_like(self.drive_e), torch.zeros_like(self.drive_i)

    def vector_field(
        self,
        e: Tensor,
        i: Tensor,
        *,
        drive: Tensor | float = 0.0,
        inhibitory: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """``(de/dt, di/dt)``, with more input of the excitatory and the inhibitory populations."""
        to_e = matvec(self.weight_ee, e) - matvec(self.weight_ei, i) + self.drive_e + drive
        to_i = matvec(self.weight_ie, e) - matvec(self.weight_ii, i) + self.drive_i + inhibitory
        active_e = _response(to_e, self.slope_e, self.threshold_e)
        active_i = _response(to_i, self.slope_i, self.threshold_i)
        return (
            ((1.0 - self.refractory * e) * active_e - e) / self.tau_e,
            ((1.0 - self.refractory * i) * active_i - i) / self.tau_i,
        )

    def rates(self, e: Tensor, i: Tensor) -> Tensor:
        """Activity of the excitatory populations, ``(..., n)``."""
        return e


def _response(x: Tensor, slope: Tensor | float, threshold: Tensor | float) -> Tensor:
    centre = torch.as_tensor(slope * threshold, dtype=x.dtype, device=x.device)
    return torch.sigmoid(slope * x - centre) - torch.sigmoid(-centre)
