"""Working memory: recurrent weights that hold what was seen, also as complex numbers.

Complex weights ``Wr`` and potentials ``y`` of ``n`` neurons are real ones of ``2n``: first the real
parts, then the imaginary ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number, check_positive_int
from ..circuit import Circuit
from .units import per_millisecond

__all__ = ["WorkingMemory", "from_complex", "real_form", "to_complex", "working_memory"]


def real_form(weight: Tensor) -> Tensor:
    """Complex weights ``(..., n, n)`` as real ones ``(..., 2n, 2n)``, ``[[Re, -Im], [Im, Re]]``.

    Raises:
        TypeError: ``weight`` is not complex.
        ValueError: It holds no square matrices.
    """
    if not isinstance(weight, Tensor) or not weight.is_complex():
        raise TypeError(f"weight: got {_kind(weight)}, expected a complex tensor")
    if weight.ndim < 2 or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (..., n, n)")
    real, imaginary = weight.real, weight.imag
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


def from_complex(values: Tensor) -> Tensor:
    """Complex vectors ``(..., n)`` as real ones ``(..., 2n)``.

    Raises:
        TypeError: ``values`` is not complex.
    """
    if not isinstance(values, Tensor) or not values.is_complex():
        raise TypeError(f"values: got {_kind(values)}, expected a complex tensor")
    return torch.cat([values.real, values.imag], -1)


def to_complex(values: Tensor) -> Tensor:
    """Real vectors ``(..., 2n)`` as complex ones ``(..., n)``, back from :func:`from_complex`.

    Raises:
        ValueError: Their length is odd.
    """
    if values.ndim == 0 or values.shape[-1] % 2:
        raise ValueError(f"values: got shape {tuple(values.shape)}, expected (..., 2n)")
    return torch.complex(*(part.contiguous() for part in values.chunk(2, -1)))


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True, eq=False)
class WorkingMemory:
    """A circuit that holds an angle without input, and what its neurons mean.

    ``circuit`` has no input; ``simulate(memory.circuit, t, input_drive=...)`` shows it a cue.
    """

    circuit: Circuit
    """Of ``2n`` neurons, in the real form, without input."""
    angles: Tensor
    """The neurons' preferred angles, ``(n,)``, in degrees."""
    amplitude: float
    """The length of ``y`` that it holds."""
    frequency: float
    """At which it oscillates, in hertz."""

    def cue(self, angle: Tensor | float, strength: Tensor | float = 1.0) -> Tensor:
        """The input drive ``(..., 2n)`` of a cue at an angle in degrees, ``(...)``."""
        at = torch.as_tensor(angle, dtype=self.angles.dtype).unsqueeze(-1)
        size = torch.as_tensor(strength, dtype=self.angles.dtype).unsqueeze(-1)
        tuned = size * torch.cos(torch.deg2rad(at - self.angles)) * math.sqrt(2 / len(self.angles))
        return torch.cat([tuned, torch.zeros_like(tuned)], -1)

    def decoded(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The angle that states ``(..., 2n)`` hold, in degrees, and their length, each ``(...)``.

        A memory that oscillates changes its sign: its angle is known up to 180 degrees.
        """
        held = to_complex(y) * math.sqrt(2 / len(self.angles))
        basis = torch.deg2rad(self.angles)
        x, z = ((held * part.to(held)).sum(-1) for part in (basis.cos(), basis.sin()))
        if self.frequency:
            # Both have one phase, which is taken out of the larger.
            larger = torch.where(x.abs() >= z.abs(), x, z)
            phase = larger / torch.where(larger.abs() > 0, larger.abs(), 1.0)
            x, z = x * phase.conj(), z * phase.conj()
        return torch.rad2deg(torch.atan2(z.real, x.real)), torch.hypot(x.real, z.real)


def working_memory(
    neurons: int = 36,
    *,
    held_rate: float = 0.5,
    semisaturation: float = 0.2,
    frequency: float = 0.0,
    tau_y: float = 10.0,
    tau_a: float = 10.0,
) -> WorkingMemory:
    """A circuit that goes on firing when its cue is gone, and holds the cue's angle.

    ``Wr`` amplifies the patterns ``cos`` and ``sin`` of the preferred angles, by
    ``1 / (1 - held_rate)``, and leaves all others silent. Activity grows until all neurons' common
    pool has the inhibitory firing rate ``a+ = held_rate``; there recurrence makes up for the leak,
    for whatever angle. Its length is stable, its angle neutral: noise moves it. With a frequency
    ``Wr`` is complex and the pattern oscillates: ``dy/dt = 2 pi i f y``.

    Args:
        neurons: ``n``, 3 at least.
        held_rate: The inhibitory firing rate during the delay, above ``b0 sigma`` and below 1.
        semisaturation: ``b0 sigma``.
        frequency: In hertz.
        tau_y: In ms.
        tau_a: In ms.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value does not fit.
    """
    n = check_positive_int("neurons", neurons)
    if n < 3:
        raise ValueError(f"neurons: got {n}, expected at least 3 to tell angles apart")
    sigma = check_number("semisaturation", semisaturation, low=0.0, open_low=True)
    rate = check_number("held_rate", held_rate, low=0.0, high=1.0)
    if not sigma < rate < 1.0:
        raise ValueError(
            f"held_rate: got {held_rate!r}, expected above semisaturation={sigma:g} and below 1"
        )
    tau = check_number("tau_y", tau_y, low=0.0, open_low=True)
    frequency = check_number("frequency", frequency)
    turn = 2.0 * math.pi * per_millisecond(frequency) * tau
    angles = torch.arange(n, dtype=torch.float64) * (360.0 / n)
    similarity = (2.0 / n) * torch.cos(torch.deg2rad(angles[:, None] - angles))
    recurrent = real_form(similarity * complex(1.0, turn) / (1.0 - rate))
    # One pool for all, of weight 1: a (1 - |y|^2) = c.
    pool = torch.ones(2 * n, 2 * n, dtype=torch.float64)
    silent = torch.zeros(2 * n, dtype=torch.float64)
    circuit = Circuit(silent, sigma**2, recurrent, pool, tau, tau_a)
    return WorkingMemory(circuit, angles, math.sqrt(1.0 - (sigma / rate) ** 2), frequency)
