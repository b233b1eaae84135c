"""Input gains with dynamics of their own (Eq. 17), in continuous time."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["DynamicGain", "InputGains"]


@dataclass(frozen=True, eq=False)
class DynamicGain:
    """A gain that obeys Eq. 17, ``tau dg/dt = -g + sigmoid(Wx x + Wy y + Wa a)``."""

    weight_x: Tensor | None = None
    """``(n, k)``, or ``(..., n, k)`` one per circuit; None is zero, as for the others."""
    weight_y: Tensor | None = None
    """``(n, n)`` or ``(..., n, n)``."""
    weight_a: Tensor | None = None
    """``(n, n)`` or ``(..., n, n)``."""
    tau: Tensor | float = 1.0
    """Time constant, positive, in the unit of the circuit's: a number, ``(n,)`` or ``(..., n)``."""
    start: Tensor | float = 0.5
    """The gain at the first time, positive: a number, ``(n,)`` or ``(..., n)``."""


@dataclass(frozen=True, eq=False)
class InputGains:
    """What drives a circuit whose gains move: ``d = b z`` and ``c = (b0 sigma)^m``.

    ``simulate(circuit, t, gains=...)`` takes the circuit's weights, time constants and exponent,
    and these in place of both its drives.
    """

    z: Callable[[Tensor], Tensor] | Tensor | tuple[Tensor, Tensor]
    """The input before its gain, of ``n`` values: given as ``input_drive`` of
    :func:`deq_organics.simulate` is."""
    semisaturation: Tensor | float
    """``sigma``, positive: a number, ``(n,)`` or ``(..., n)``."""
    input_gain: DynamicGain | Tensor | float = 1.0
    """``b``; one that does not move is a number, ``(n,)`` or ``(..., n)``."""
    baseline_gain: DynamicGain | Tensor | float = 1.0
    """``b0``, positive, likewise."""
    x: Callable[[Tensor], Tensor] | Tensor | tuple[Tensor, Tensor] | None = None
    """What ``weight_x`` of the gains acts on, of ``k`` values: given likewise."""
