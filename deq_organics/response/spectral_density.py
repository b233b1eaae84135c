"""Cross-spectral densities as a value: power, coherence and phase."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import as_float_tensor, check_finite, physical
from .peaks import Peak, highest_peaks

__all__ = ["CrossSpectrum"]


@dataclass(frozen=True)
class CrossSpectrum:
    """Cross-spectral densities of a batch of circuits; ``print`` it for a summary."""

    frequency: Tensor
    """In cycles per unit of time, ``(F,)``."""
    density: Tensor
    """Complex, ``(..., F, 2n, 2n)`` in the order ``(y, a)``, or ``(..., F, p, p)`` of ``p``
    read-outs, Hermitian, squared potential per unit of frequency. Entry ``[i, j]`` is the mean of
    ``conj(X_i) X_j``, as of ``scipy.signal.csd(x_i, x_j)``. NaN for circuits without a stable
    steady state."""
    sided: str
    """``"two"``: integrates over all frequencies to the covariance; ``"one"``: over ``f >= 0``."""
    response: Tensor | None = None
    """What the noise sources make of each component, in a unit of its own, complex
    ``(..., F, 2n, k)``: coherence and phase are exact from it where densities underflow. None takes
    them from the density."""
    names: tuple[str, ...] | None = None
    """Of the read-outs, where they have some; see :meth:`project`."""

    @property
    def power(self) -> Tensor:
        """Each component's power spectral density, real ``(..., F, 2n)``."""
        return self.density.diagonal(dim1=-2, dim2=-1).real

    def project(
        self, weights: Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]
    ) -> "CrossSpectrum":
        """Spectra of weighted sums of the components, as a local field potential is one.

        Args:
            weights: ``(2n,)`` for one read-out of ``(y, a)``, or ``(n,)`` for one of ``y``;
                ``(p, 2n)`` or ``(p, n)`` for ``p`` of them; ``(..., p, 2n)`` or ``(..., p, n)``
                with leading dimensions that are those of the circuits. Or a read-out for each of
                several names, ``{"V1": w1, "V2": w2}``, each ``(n,)`` or ``(2n,)``, or with
                leading dimensions that are the circuits': :meth:`coherence` takes these names.

        Returns:
            The densities ``(..., F, p, p)`` of the read-outs; differentiable by the weights.

        Raises:
            TypeError: ``weights`` are no tensors.
            ValueError: A shape, dtype or device does not fit; the message names the argument.
        """
        names = None
        if isinstance(weights, Mapping):
            names = tuple(weights)
            if not names:
                raise ValueError("weights: got no read-outs, expected at least one")
            rows = [self._weights(f"weights[{name!r}]", value) for name, value in weights.items()]
            lead = torch.broadcast_shapes(*(row.shape[:-1] for row in rows))
            matrix = torch.stack([row.expand(*lead, row.shape[-1]) for row in rows], -2)
        else:
            matrix = self._weights("weights", weights, core=2)
        matrix = matrix.to(self.density.dtype).unsqueeze(-3)
        density = matrix @ self.density @ matrix.mT
        return CrossSpectrum(self.frequency, density, self.sided, None, names)

    def _weights(self, name: str, value: Tensor | np.ndarray, core: int = 1) -> Tensor:
        """``(..., size)`` of all components; ``core`` dimensions describe one circuit."""
        like, size = self.density, self.density.shape[-1]
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.from_numpy(value.astype(np.float64)).to(like.device)
        tensor = as_float_tensor(name, value)
        check_finite(name, tensor)
        if tensor.device != like.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected {like.device}")
        half = size // 2 if self.names is None else size
        if tensor.ndim == 0 or tensor.shape[-1] not in (half, size):
            expected = f"{size}" if half == size else f"{half} (y) or {size} (y and a)"
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected a last dimension of {expected}"
            )
        if tensor.ndim == 1 and core == 2:
            tensor = tensor.unsqueeze(0)
        batch, lead = self.density.shape[:-3], tensor.shape[: tensor.ndim - core]
        try:
            fits = torch.broadcast_shapes(lead, batch) == batch
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, expected leading dimensions, which are "
                f"circuits, that broadcast with {tuple(batch)} and do not enlarge it"
            )
        return torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1]))

    def peak(self, band: tuple[float, float] | None = None) -> Peak:
        """The highest peak of each component's power within a band.

        A peak is a frequency with more power than both its neighbours; the largest power at an
        edge of the band is none.

        Args:
            band: Lowest and highest frequency; None takes all.

        Returns:
            Its frequency, by the parabola through the logarithms of three powers, and its power,
            each ``(..., 2n)``; NaN where there is no peak.
        """
        return highest_peaks(self.frequency, self.power, self.sided, band)

    def coherence(self, first: str | None = None, second: str | None = None) -> Tensor:
        """Magnitude-squared coherence in [0, 1]; 0 with what has no power.

        Args:
            first: Name of a read-out of :meth:`project`.
            second: Name of the other one.

        Returns:
            ``(..., F)`` of the two; without names ``(..., F, 2n, 2n)`` of all components.
        """
        if first is None and second is None:
            return self._coherence()
        return self._coherence()[..., self._index("first", first), self._index("second", second)]

    def _index(self, argument: str, name: str | None) -> int:
        known = self.names or ()
        if name not in known:
            expected = ", ".join(map(repr, known)) if known else "no name: project() gives them"
            raise ValueError(f"{argument}: got {name!r}, expected {expected}")
        return known.index(name)

    def _coherence(self) -> Tensor:
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
        frequency, size = physical(self.frequency), self.density.shape[-1]
        # Of an odd number of components, which are read-outs, none is called y.
        whole = self.names is not None or size % 2 == 1
        n, what = (size, "read-outs") if whole else (size // 2, "y")
        power = physical(self.power)[..., :n].mT
        power = power.reshape(math.prod(power.shape[:-2]), n, frequency.numel())
        total, known = power.shape[0], ~power.isnan().any(-1).any(-1)
        lines = [
            f"CrossSpectrum of {total} circuits, {f'{n} read-outs' if whole else f'n = {n}'}, "
            f"{self.sided}-sided, at "
            f"{frequency.numel()} frequencies from {frequency.min():.4g} to {frequency.max():.4g}"
        ]
        if known.any():
            if self.sided == "one":  # Zero frequency has no mirror image to be doubled by.
                power = power * torch.where(frequency > 0, 1.0, 2.0)
            peak = frequency[power[known].argmax(-1)].abs().flatten()
            lines.append(
                f"  power of {what} peaks at: max {peak.max():.4g}, median {peak.median():.4g}, "
                f"min {peak.min():.4g} (cycles/time)"
            )
            resonant = int((peak > frequency.abs().min()).sum())
            lines.append(
                f"  peak above the lowest frequency in {resonant} of {peak.numel()} {what}"
            )
        if missing := total - int(known.sum()):
            lines.append(f"  without a stable steady state: {missing}")
        return "\n".join(lines)
