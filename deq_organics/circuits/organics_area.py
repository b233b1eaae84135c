"""The circuit of Eq. 1 or 87 as an area that others feed."""

from typing import Any

from torch import Tensor

from .. import equations
from ..circuit import Circuit

__all__ = ["OrganicsArea"]


class OrganicsArea:
    """A :class:`Circuit` whose equations take more input."""

    parts = ("y", "a")
    inputs = ("drive", "gain", "feedback", "inhibitory")

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit

    def rest(self) -> tuple[Tensor, Tensor]:
        """Of the circuit."""
        return self.circuit.rest()

    def vector_field(
        self,
        y: Tensor,
        a: Tensor,
        *,
        drive: Tensor | float = 0.0,
        gain: Tensor | float = 0.0,
        feedback: Tensor | float = 0.0,
        inhibitory: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Eq. 1 or 87 with more input.

        ``tau_y y' = -y + (1 + gain) (d + drive) + (1 - a+) (Wr y + feedback)`` and
        ``tau_a a' = -a + c + inhibitory + W (|y|^m relu(a))``.
        """
        known = self.circuit
        rate = equations.inhibitory_firing_rate(a, known.exponent)
        recurrent = equations.recurrent_drive(y, known.recurrent_weight, known.rectified)
        driven = (1.0 + gain) * (known.input_drive + drive)
        pool = equations.normalization_pool(y, a, known.exponent, known.rectified)
        pooled = equations.matvec(known.normalization_weight, pool)
        return (
            (driven - y + (1.0 - rate) * (recurrent + feedback)) / known.tau_y,
            (known.inhibitory_drive + inhibitory - a + pooled) / known.tau_a,
        )

    def rates(self, y: Tensor, a: Tensor) -> Tensor:
        """Firing rates ``y+ = relu(y)^m``, ``(..., n)``."""
        return equations.firing_rate(y, self.circuit.exponent)

    def to(self, *args: Any, **kwargs: Any) -> "OrganicsArea":
        """The same area in another dtype or on another device."""
        return OrganicsArea(self.circuit.to(*args, **kwargs))
