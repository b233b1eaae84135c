"""A cortical area with feedback cells (Pal, Rawat, Heeger, Martiniani 2025)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..equations import inhibitory_firing_rate, matvec
from .arguments import TensorFields, matrix, positive, vector

__all__ = ["FeedbackArea"]


@dataclass(frozen=True, eq=False)
class FeedbackArea(TensorFields):
    """An area that feedback ``F`` from a higher one amplifies: parts ``(y, u, p, s)``.

    With ``y+ = relu(y)^2``, ``u+ = sqrt(relu(u))``, ``p+ = relu(p)``, ``s+ = relu(s)``::

        tau dy/dt = -y + b beta z + (W sqrt(y+) + g gamma F) / (1 + p+)
        tau du/dt = -u + (sigma b)^2 + Wn (y+ (u+)^2)
        tau dp/dt = -p + g F / s+ + u+ + p u+ + alpha tau du/dt
        tau ds/dt = -s + sqrt(y+ + epsilon)

    With ``W = I``, ``gamma = 1`` and ``s = y`` normalization is exact whatever the feedback:
    ``1 + p = (1 + g F / s) / (1 - u+)``, hence ``y = b beta z / u+`` and
    ``u = (sigma b)^2 + Wn (b beta z)^2``. ``epsilon`` takes ``s`` away from ``y`` by
    ``epsilon / (2 y)``. A
    :class:`Network` feeds ``F`` and ``z`` from other areas. Leading dimensions broadcast.

    Args:
        z: Input, ``(..., n)``.
        recurrent_weight: ``W``, ``(..., n, n)``; None is the identity.
        normalization_weight: ``Wn``, nonnegative, ``(..., n, n)``.
        feedback: ``F``, ``W_fb sqrt(y+)`` of the higher area, nonnegative; a number or
            ``(..., n)``.
        gain: ``b``, positive: a number or ``(..., n)``. So are those that follow.
        input_gain: ``beta``.
        feedback_strength: ``g``, at least 0; 0 is an area without feedback.
        feedback_gain: ``gamma``, at least 0.
        semisaturation: ``sigma``.
        alpha: At least 0.
        tau: Time constant, in any unit of time (1 ms).
        epsilon: Positive.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype or value does not fit; the message names the argument.
    """

    z: Tensor
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    feedback: Tensor | float = 0.0
    gain: Tensor | float = 0.5
    input_gain: Tensor | float = 1.0
    feedback_strength: Tensor | float = 0.5
    feedback_gain: Tensor | float = 1.0
    semisaturation: Tensor | float = 0.07
    alpha: Tensor | float = 10.0
    tau: Tensor | float = 1.0
    epsilon: Tensor | float = 1e-6

    parts = ("y", "u", "p", "s")
    inputs = ("drive", "gain", "feedback", "inhibitory")

    def __post_init__(self) -> None:
        z = vector("z", self.z)
        n = z.shape[-1]
        if self.recurrent_weight is not None:
            matrix("recurrent_weight", self.recurrent_weight, (n, n), z)
        matrix("normalization_weight", self.normalization_weight, (n, n), z, low=True)
        for name in ("gain", "semisaturation", "tau", "epsilon"):
            positive(name, getattr(self, name), n, z)
        for name in ("feedback", "input_gain", "feedback_strength", "feedback_gain", "alpha"):
            positive(name, getattr(self, name), n, z, allow_zero=True)

    def rest(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Without input and feedback: ``y = 0``, ``u = (sigma b)^2``, ``p = u+ / (1 - u+)``.

        Where ``u+ >= 1`` there is no such fixed point, and ``p = u+``.
        """
        y = torch.zeros_like(self.z)
        rate = self.semisaturation * self.gain + y
        p = rate / torch.where(rate < 1.0, 1.0 - rate, 1.0)
        return y, rate.square(), p, (self.epsilon + y).sqrt()

    def vector_field(
        self,
        y: Tensor,
        u: Tensor,
        p: Tensor,
        s: Tensor,
        *,
        drive: Tensor | float = 0.0,
        gain: Tensor | float = 0.0,
        feedback: Tensor | float = 0.0,
        inhibitory: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The derivatives by time of all parts, with more input.

        ``drive`` is added to ``z``, ``gain`` to ``beta``, ``feedback`` to ``F`` and ``inhibitory``
        to ``(sigma b)^2``.
        """
        fed = self.feedback_strength * (self.feedback + feedback)
        rate, active = inhibitory_firing_rate(u), torch.relu(y)
        driven = self.gain * (self.input_gain + gain) * (self.z + drive)
        recurrent = matvec(self.recurrent_weight, active) + self.feedback_gain * fed
        pool = matvec(self.normalization_weight, active.square() * torch.relu(u))
        fall = (self.semisaturation * self.gain) ** 2 + inhibitory + pool - u
        root = (active.square() + self.epsilon).sqrt()
        return (
            (driven - y + recurrent / (1.0 + torch.relu(p))) / self.tau,
            fall / self.tau,
            (fed / torch.relu(s) + rate + p * rate - p + self.alpha * fall) / self.tau,
            (root - s) / self.tau,
        )

    def rates(self, y: Tensor, u: Tensor, p: Tensor, s: Tensor) -> Tensor:
        """Firing rates ``y+ = relu(y)^2``, ``(..., n)``."""
        return torch.relu(y).square()
