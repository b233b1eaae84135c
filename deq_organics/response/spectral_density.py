"""Cross-spectral densities as a value: power, coherence and phase."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import physical

__all__ = ["CrossSpectrum"]


@dataclass(frozen=True)
class CrossSpectrum:
    """Cross-spectral densities of a batch of circuits; ``print`` it for a summary."""

    frequency: Tensor
    """In cycles per unit of time, ``(F,)``."""
    density: Tensor
    """Complex, ``(..., F, 2n, 2n)`` in the order ``(y, a)``, Hermitian, squared potential per unit
    of frequency. Entry ``[i, j]`` is the mean of ``conj(X_i) X_j``, as of
    ``scipy.signal.csd(x_i, x_j)``. NaN for circuits without a stable steady state."""
    sided: str
    """``"two"``: integrates over all frequencies to the covariance; ``"one"``: over ``f >= 0``."""
    response: Tensor | None = None
    """What the noise sources make of each component, in a unit of its own, complex
    ``(..., F, 2n, k)``: coherence and phase are exact from it where densities underflow. None takes
    them from the density."""

    @property
    def power(self) -> Tensor:
        """Each component's power spectral density, real ``(..., F, 2n)``."""
        return self.density.diagonal(dim1=-2, dim2=-1).real

    def coherence(self) -> Tensor:
        """Magnitude-squared coherence ``(..., F, 2n, 2n)`` in [0, 1]; 0 with what has no power."""
        density = self._density_in_own_units()
        power = density.diagonal(dim1=-2, dim2=-1).real
        amplitude = torch.where(power == 0, 1.0, power).sqrt()
        # Divided one at a time: the product of two small densities could underflow.
        ratio = density / amplitude.unsqueeze(-1) / amplitude.unsqueeze(-2)
        return self._nan_where_unknown((ratio.real.square() + ratio.imag.square()).clamp(max=1.0))

    def phase(self) -> Tensor:
        """Radians in [-pi, pi] by which component ``j`` leads ``i``, ``(..., F, 2n, 2n)``."""
        return self._nan_where_unknown(self._density_in_own_units().angle())

    def _density_in_own_units(self) -> Tensor:
        """The density, each component in any unit of its own; what is not known may be anything."""
        if self.response is None:
            return self.density
        return self.response.conj() @ self.response.mT

    def _nan_where_unknown(self, values: Tensor) -> Tensor:
        return torch.where(self.density.detach().real.isnan(), torch.nan, values)

    def __str__(self) -> str:
        frequency, n = physical(self.frequency), self.density.shape[-1] // 2
        power = physical(self.power)[..., :n].mT
        power = power.reshape(math.prod(power.shape[:-2]), n, frequency.numel())
        total, known = power.shape[0], ~power.isnan().any(-1).any(-1)
        lines = [
            f"CrossSpectrum of {total} circuits, n = {n}, {self.sided}-sided, at "
            f"{frequency.numel()} frequencies from {frequency.min():.4g} to {frequency.max():.4g}"
        ]
        if known.any():
            if self.sided == "one":  # Zero frequency has no mirror image to be doubled by.
                power = power * torch.where(frequency > 0, 1.0, 2.0)
            peak = frequency[power[known].argmax(-1)].abs().flatten()
            lines.append(
                f"  power of y peaks at: max {peak.max():.4g}, median {peak.median():.4g}, "
                f"min {peak.min():.4g} (cycles/time)"
            )
            resonant = int((peak > frequency.abs().min()).sum())
            lines.append(f"  peak above the lowest frequency in {resonant} of {peak.numel()} y")
        if missing := total - int(known.sum()):
            lines.append(f"  without a stable steady state: {missing}")
        return "\n".join(lines)
