"""The stabilized supralinear network, of the paper's Table 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number
from ..equations import matvec, power
from .arguments import TensorFields, matrix, positive, vector

__all__ = ["SSN"]


@dataclass(frozen=True, eq=False)
class SSN(TensorFields):
    """The stabilized supralinear network of excitatory and inhibitory cells: ``(e, i)``.

    With potentials ``u = (e, i)`` and rates ``r = gain relu(u)^exponent``::

        tau du/dt = -u + drive + [W_ee, -W_ei; W_ie, -W_ii] r

    Leading dimensions broadcast. A circuit may have no stable steady state, or its rates may run
    away: that is said, never returned as a state.

    Args:
        drive_e: Input of the excitatory cells, ``(..., E)``.
        drive_i: Input of the inhibitory cells, ``(..., I)``.
        weight: ``(..., E + I, E + I)``, from columns to rows, nonnegative: the columns of the
            inhibitory cells enter with a minus (Dale's law).
        gain: ``k`` of the power law, positive (0.3 in Soo and Lengyel 2022): a number, or a tensor
            of no dimension.
        exponent: Of the power law, at least 1.
        tau_e: Time constants, 20 ms by default: a number or ``(..., E)``.
        tau_i: Those of the inhibitory cells, 10 ms: a number or ``(..., I)``.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype or value does not fit; the message names the argument.
    """

    drive_e: Tensor
    drive_i: Tensor
    weight: Tensor
    gain: Tensor | float = 0.3
    exponent: float = 2.0
    tau_e: Tensor | float = 20.0
    tau_i: Tensor | float = 10.0

    parts = ("e", "i")
    inputs = ("drive", "inhibitory")

    def __post_init__(self) -> None:
        e = vector("drive_e", self.drive_e)
        i = vector("drive_i", self.drive_i, like=e)
        size = e.shape[-1] + i.shape[-1]
        matrix("weight", self.weight, (size, size), e, low=True)
        positive("gain", self.gain, 1, e)
        check_number("exponent", self.exponent, low=1.0, high=64.0)
        positive("tau_e", self.tau_e, e.shape[-1], e)
        positive("tau_i", self.tau_i, i.shape[-1], e)

    def rest(self) -> tuple[Tensor, Tensor]:
        """All potentials 0."""
        return torch.zeros_like(self.drive_e), torch.zeros_like(self.drive_i)

    def vector_field(
        self,
        e: Tensor,
        i: Tensor,
        *,
        drive: Tensor | float = 0.0,
        inhibitory: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """``(de/dt, di/dt)``, with more input of the excitatory and the inhibitory cells."""
        excitatory, inhibiting = self.weight.split((e.shape[-1], i.shape[-1]), -1)
        recurrent = matvec(excitatory, self.rates(e)) - matvec(inhibiting, self.rates(i))
        to_e, to_i = recurrent.split((e.shape[-1], i.shape[-1]), -1)
        return (
            (self.drive_e + drive + to_e - e) / self.tau_e,
            (self.drive_i + inhibitory + to_i - i) / self.tau_i,
        )

    def rates(self, e: Tensor, i: Tensor | None = None) -> Tensor:
        """Firing rates ``gain relu(e)^exponent``, ``(..., E)``."""
        return self.gain * power(torch.relu(e), self.exponent)
