"""The circuit with amplifying cells (Heeger and Zemlianova, PNAS 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..equations import inhibitory_firing_rate, matvec
from .arguments import TensorFields, matrix, positive, vector

__all__ = ["AmplifierCircuit"]


@dataclass(frozen=True, eq=False)
class AmplifierCircuit(TensorFields):
    """Principal cells ``y``, normalizing cells ``u`` and amplifying cells ``a``: ``(y, u, a)``.

    With ``u+ = sqrt(relu(u))``::

        tau_y dy/dt = -y + d + Wr y / (1 + a)
        tau_u du/dt = -u + c + W (y^2 relu(u))
        tau_a da/dt = -a + u+ + a u+ + alpha tau_u du/dt / (2 u+)

    ``d = b z / (1 + b)`` and ``c = (sigma b0 / (1 + b0))^2`` in the paper's notation, of which
    :meth:`from_gains` makes them; its factor ``u / (u+)^2`` is 1. At a fixed point
    ``1 / (1 + a) = 1 - u+``, so that with ``Wr = I`` and as long as ``u+ < 1`` normalization is
    exact: ``y = d / u+``, ``u = c + W d^2``. The larger ``alpha``, the more it tends to gamma
    oscillations, whose frequency rises with contrast. Leading dimensions broadcast.

    Args:
        input_drive: ``d``, ``(..., n)``.
        inhibitory_drive: ``c``, positive, ``(..., n)`` or a number.
        recurrent_weight: ``Wr``, ``(..., n, n)``; None is the identity.
        normalization_weight: ``W``, nonnegative, ``(..., n, n)``.
        alpha: At least 0: a number, or a tensor of no dimension or ``(..., n)``.
        tau_y: Time constants, positive, in any unit of time: a number or ``(..., n)``.
        tau_u: Of the normalizing cells, likewise.
        tau_a: Of the amplifying cells, likewise.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype or value does not fit; the message names the argument.
    """

    input_drive: Tensor
    inhibitory_drive: Tensor | float
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    alpha: Tensor | float = 0.0
    tau_y: Tensor | float = 1.0
    tau_u: Tensor | float = 1.0
    tau_a: Tensor | float = 1.0

    parts = ("y", "u", "a")
    inputs = ("drive", "gain", "feedback", "inhibitory")

    def __post_init__(self) -> None:
        d = vector("input_drive", self.input_drive)
        n = d.shape[-1]
        positive("inhibitory_drive", self.inhibitory_drive, n, d)
        if self.recurrent_weight is not None:
            matrix("recurrent_weight", self.recurrent_weight, (n, n), d)
        matrix("normalization_weight", self.normalization_weight, (n, n), d, low=True)
        positive("alpha", self.alpha, n, d, allow_zero=True)
        for name in ("tau_y", "tau_u", "tau_a"):
            positive(name, getattr(self, name), n, d)

    @classmethod
    def from_gains(
        cls,
        z: Tensor,
        input_gain: Tensor | float,
        baseline_gain: Tensor | float,
        semisaturation: Tensor | float,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        alpha: Tensor | float = 0.0,
        tau_y: Tensor | float = 1.0,
        tau_u: Tensor | float = 1.0,
        tau_a: Tensor | float = 1.0,
    ) -> "AmplifierCircuit":
        """The circuit with ``d = b z / (1 + b)`` and ``c = (sigma b0 / (1 + b0))^2``.

        Args:
            z: Input before its gain, ``(..., n)``.
            input_gain: ``b``, positive, a number or ``(..., n)``.
            baseline_gain: ``b0``, likewise.
            semisaturation: ``sigma``, likewise.
            recurrent_weight: This and what follows as in the constructor.
            normalization_weight: See there.
            alpha: See there.
            tau_y: See there.
            tau_u: See there.
            tau_a: See there.
        """
        z = vector("z", z)
        for name, value in (
            ("input_gain", input_gain),
            ("baseline_gain", baseline_gain),
            ("semisaturation", semisaturation),
        ):
            positive(name, value, z.shape[-1], z)
        return cls(
            input_gain / (1.0 + input_gain) * z,
            (semisaturation * baseline_gain / (1.0 + baseline_gain)) ** 2,
            recurrent_weight,
            normalization_weight,
            alpha,
            tau_y,
            tau_u,
            tau_a,
        )

    def rest(self) -> tuple[Tensor, Tensor, Tensor]:
        """The fixed point without input: ``y = 0``, ``u = c``, ``a = u+ / (1 - u+)``.

        Where ``u+ >= 1`` there is none, and ``a = u+``.
        """
        y = torch.zeros_like(self.input_drive)
        u = self.inhibitory_drive + y
        rate = u.sqrt()
        inside = rate < 1.0
        return y, u, rate / torch.where(inside, 1.0 - rate, 1.0)

    def vector_field(
        self,
        y: Tensor,
        u: Tensor,
        a: Tensor,
        *,
        drive: Tensor | float = 0.0,
        gain: Tensor | float = 0.0,
        feedback: Tensor | float = 0.0,
        inhibitory: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(dy/dt, du/dt, da/dt)``, with more input.

        ``drive`` is added to ``d``; ``gain`` to the 1 by which that sum is multiplied; ``feedback``
        to ``Wr y``; ``inhibitory`` to ``c``.
        """
        rate = inhibitory_firing_rate(u)
        recurrent = matvec(self.recurrent_weight, y) + feedback
        driven = (1.0 + gain) * (self.input_drive + drive)
        pool = matvec(self.normalization_weight, y * y * torch.relu(u))
        fall = self.inhibitory_drive + inhibitory + pool - u
        positive_u = u > 0
        slope = torch.where(positive_u, 0.5 / torch.where(positive_u, rate, 1.0), 0.0)
        return (
            (driven - y + recurrent / (1.0 + a)) / self.tau_y,
            fall / self.tau_u,
            (rate + a * rate - a + self.alpha * slope * fall) / self.tau_a,
        )

    def rates(self, y: Tensor, u: Tensor, a: Tensor) -> Tensor:
        """Firing rates ``y+ = relu(y)^2``, ``(..., n)``."""
        return torch.relu(y).square()
