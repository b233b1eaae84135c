"""A sheet of neurons tuned to position and orientation: its stimuli, its weights, its circuits.

Neuron ``i`` prefers a grating at the position ``x_i`` with the orientation ``theta_i``. A stimulus
of contrast ``C`` gives it the input ``z_i = C t(theta_i - theta) v(x_i)``: its tuning times the
part of its receptive field that the stimulus covers. The normalization weights ``W`` pool over all
orientations alike and over a wider neighbourhood than the receptive field, so that Eq. 2 reads
``y+ = (A z)^2 / (sigma^2 + W (A z)^2)``, with ``A = b / b0`` the attention field and ``sigma`` the
contrast that evokes half of the largest response to a full field.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_finite, check_number, check_positive_int
from ..circuit import Circuit
from .stimuli import covered, tuning

__all__ = ["Sheet", "line", "orientations", "ring", "sharpening_weight"]

# Of the drive to a neuron; its response, the square of it, falls to half at 22 degrees.
_TUNING = 1.2
_RECURRENT_TUNING = 4.0


@dataclass(frozen=True, eq=False)
class Sheet:
    """Neurons at every combination of some positions and orientations, ``n`` in all.

    Vectors of neurons are ``(..., n)``, the orientation running fastest.

    Args:
        positions: Along a line through the visual field, ``(P,)``, in degrees of visual angle, in
            float64; 0 is in the middle.
        orientations: Evenly spaced over 180 degrees, ``(K,)``; 0 is in the middle.
        semisaturation: ``sigma``, a contrast between 0 and 1.
        concentration: Of the tuning to orientation; responses, the squares of drives, fall to half
            at 22 degrees with 1.2, at 36 with 0.5.
        receptive_field: Standard deviation of receptive fields, in degrees of visual angle.
        normalization_field: Standard deviation of the normalization pool, likewise.
        baseline_gain: ``b0``.
        tau_y: Time constant of the excitatory neurons, in ms.
        tau_a: Of the inhibitory neurons, in ms.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value does not fit.
    """

    positions: Tensor
    orientations: Tensor
    semisaturation: float
    concentration: float = _TUNING
    receptive_field: float = 0.5
    normalization_field: float = 2.0
    baseline_gain: float = 0.5
    tau_y: float = 4.0
    tau_a: float = 4.0

    def __post_init__(self) -> None:
        for name in ("positions", "orientations"):
            values = as_float_tensor(name, getattr(self, name))
            check_finite(name, values)
            if values.ndim != 1 or values.numel() == 0:
                raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected one dimension")
        for name in ("receptive_field", "normalization_field", "baseline_gain", "tau_y", "tau_a"):
            check_number(name, getattr(self, name), low=0.0, open_low=True)
        check_number("semisaturation", self.semisaturation, low=0.0, open_low=True)
        check_number("concentration", self.concentration, low=0.0)

    @property
    def x(self) -> Tensor:
        """The neurons' preferred positions, ``(n,)``, in degrees."""
        return self.positions.repeat_interleave(len(self.orientations))

    @property
    def theta(self) -> Tensor:
        """The neurons' preferred orientations, ``(n,)``, in degrees."""
        return self.orientations.repeat(len(self.positions))

    @property
    def middle(self) -> int:
        """The neuron that prefers the position 0 and the orientation 0."""
        return int((self.x.abs() + self.theta.abs()).argmin())

    @cached_property
    def normalization_weight(self) -> Tensor:
        """``W``, ``(n, n)``, scaled so that a full field of contrast C adds ``C^2`` to ``sigma^2``.

        All orientations weigh the same; positions by a Gaussian of their distance.
        """
        distance = self.positions[:, None] - self.positions
        weight = torch.exp(-0.5 * (distance / self.normalization_field) ** 2)
        weight = weight / weight[len(weight) // 2].sum()
        power = tuning(self.orientations, self.concentration).square().sum()
        count = len(self.orientations)
        return torch.kron(weight, weight.new_ones(count, count)) / power

    def grating(
        self,
        contrast: Tensor | float,
        orientation: Tensor | float = 0.0,
        radius: Tensor | float = math.inf,
        center: Tensor | float = 0.0,
    ) -> Tensor:
        """The input ``z`` of gratings, ``(..., n)``; for a mask, add that of another grating.

        Args:
            contrast: Between 0 and 1.
            orientation: In degrees.
            radius: Of the aperture, in degrees of visual angle; infinite is a full field.
            center: Of the aperture, likewise.

        All are numbers or tensors that broadcast to ``(...)``.
        """
        contrast, orientation, radius, center = (
            torch.as_tensor(value, dtype=self.positions.dtype).unsqueeze(-1)
            for value in (contrast, orientation, radius, center)
        )
        tuned = tuning(self.theta - orientation, self.concentration)
        return contrast * tuned * covered(self.x - center, radius, self.receptive_field)

    def attention(self, gain: float, width: float, center: float = 0.0) -> Tensor:
        """The attention field ``A = b / b0``, ``(n,)``: ``gain`` at its centre, 1 far from it.

        Args:
            gain: 1 at least.
            width: Standard deviation over positions, in degrees.
            center: In degrees.
        """
        return 1 + (gain - 1) * torch.exp(-0.5 * ((self.x - center) / width) ** 2)

    def circuit(
        self, z: Tensor, attention: Tensor | float = 1.0, recurrent_weight: Tensor | None = None
    ) -> Circuit:
        """The circuits with the inputs ``z``, ``(..., n)``; time constants in ms.

        Args:
            z: The inputs.
            attention: ``A = b / b0``, ``(n,)`` or a number.
            recurrent_weight: ``Wr``, ``(n, n)``; None is the identity.
        """
        return Circuit(
            input_drive=self.baseline_gain * attention * z,
            inhibitory_drive=(self.baseline_gain * self.semisaturation) ** 2,
            recurrent_weight=recurrent_weight,
            normalization_weight=self.normalization_weight,
            tau_y=self.tau_y,
            tau_a=self.tau_a,
        )

    def normalized(self, z: Tensor, attention: Tensor | float = 1.0) -> Tensor:
        """Eq. 2: the firing rates ``y+``, ``(..., n)``, of the circuits with ``Wr = I``.

        For inputs that are not negative, as those of gratings.
        """
        power = (attention * z).square()
        return power / (self.semisaturation**2 + power @ self.normalization_weight.mT)


def ring(semisaturation: float, concentration: float = _TUNING, *, neurons: int = 36) -> Sheet:
    """Neurons of one position, for stimuli that cover their receptive fields."""
    position = torch.zeros(1, dtype=torch.float64)
    return Sheet(position, orientations(neurons), semisaturation, concentration)


def line(
    semisaturation: float,
    concentration: float = _TUNING,
    *,
    positions: int = 33,
    spacing: float = 0.5,
    neurons: int = 6,
) -> Sheet:
    """Neurons of several orientations at each of several positions, ``spacing`` degrees apart.

    Args:
        semisaturation: As that of :class:`Sheet`.
        concentration: Likewise.
        positions: How many; an odd number has one at 0.
        spacing: In degrees of visual angle.
        neurons: Orientations at each position.
    """
    count = check_positive_int("positions", positions)
    places = torch.arange(count, dtype=torch.float64) - count // 2
    places = places * check_number("spacing", spacing, low=0.0, open_low=True)
    return Sheet(places, orientations(neurons), semisaturation, concentration)


def sharpening_weight(sheet: Sheet, concentration: float = _RECURRENT_TUNING) -> Tensor:
    """``Wr``, ``(n, n)``: similar orientations excite each other, all inhibit each other.

    The inhibition balances the excitation, and the largest singular value is 1.
    """
    weight = tuning(sheet.theta[:, None] - sheet.theta, concentration)
    weight = weight - weight.mean()
    return weight / torch.linalg.matrix_norm(weight, 2)


def orientations(count: int) -> Tensor:
    """``count`` orientations, evenly spaced from -90 degrees on, in float64."""
    count = check_positive_int("count", count)
    return torch.arange(count, dtype=torch.float64) * (180 / count) - 90
