"""A sheet of neurons tuned to position and orientation: its stimuli, its weights, its circuits.

Neuron `i` prefers a grating at the position `x_i` with the orientation `theta_i`. A stimulus of
contrast `C` gives it the input drive `z_i = C t(theta_i - theta) v(x_i)`: its tuning times the part
of its receptive field that the stimulus covers. The normalization weights `W` pool over all
orientations alike and over a wider neighbourhood than the receptive field, so that Eq. 2 of Rawat,
Heeger and Martiniani (NeurIPS 2024) reads `y+ = (A z)^2 / (sigma^2 + W (A z)^2)`, with `A = b / b0`
the attention field and `sigma` the contrast that evokes half of the largest response to a full
field.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deq_organics import Circuit

# Of the drive to a neuron; its response, the square of it, falls to half at 22 or at 36 degrees.
NARROW_TUNING, BROAD_TUNING = 1.2, 0.5
RECURRENT_TUNING = 4.0
# Standard deviations in degrees of visual angle.
RECEPTIVE_FIELD = 0.5
NORMALIZATION_FIELD = 2.0
BASELINE_GAIN = 0.5
# In ms.
TAU_Y, TAU_A = 4.0, 4.0


@dataclass(frozen=True, eq=False)
class Sheet:
    """Neurons at every combination of some positions and orientations, `n` in all.

    Vectors of neurons are `(..., n)`, the orientation running fastest.

    Attributes:
        positions: along a line through the visual field, `(P,)`, in degrees; 0 is in the middle.
        orientations: evenly spaced over 180 degrees, `(K,)`; 0 is in the middle.
        semisaturation: `sigma`, a contrast between 0 and 1.
        concentration: of the tuning to orientation.
    """

    positions: Tensor
    orientations: Tensor
    semisaturation: float
    concentration: float = NARROW_TUNING

    @property
    def x(self) -> Tensor:
        """The neurons' preferred positions, `(n,)`, in degrees."""
        return self.positions.repeat_interleave(len(self.orientations))

    @property
    def theta(self) -> Tensor:
        """The neurons' preferred orientations, `(n,)`, in degrees."""
        return self.orientations.repeat(len(self.positions))

    @property
    def middle(self) -> int:
        """The neuron that prefers the position 0 and the orientation 0."""
        return int((self.x.abs() + self.theta.abs()).argmin())

    @cached_property
    def normalization_weight(self) -> Tensor:
        """`W`, `(n, n)`, scaled so that a full field of contrast `C` adds `C^2` to `sigma^2`.

        All orientations weigh the same; positions by a Gaussian of their distance.
        """
        distance = self.positions[:, None] - self.positions
        weight = torch.exp(-0.5 * (distance / NORMALIZATION_FIELD) ** 2)
        weight = weight / weight[len(weight) // 2].sum()
        power = tuning(self.orientations, self.concentration).square().sum()
        count = len(self.orientations)
        return torch.kron(weight, weight.new_ones(count, count)) / power

    def grating(
        self,
        contrast: Tensor | float,
        orientation: Tensor | float = 0.0,
        radius: Tensor | float = math.inf,
    ) -> Tensor:
        """The input drive `z` of gratings at the position 0, `(..., n)`.

        Args:
            contrast: between 0 and 1.
            orientation: in degrees.
            radius: in degrees; infinite is a full field.

        All three are numbers or broadcast to `(...)`.
        """
        contrast, orientation, radius = (
            torch.as_tensor(value, dtype=self.positions.dtype).unsqueeze(-1)
            for value in (contrast, orientation, radius)
        )
        tuned = tuning(self.theta - orientation, self.concentration)
        return contrast * tuned * covered(self.x, radius)

    def attention(self, gain: float, width: float) -> Tensor:
        """The attention field `A = b / b0`, `(n,)`: `gain` at the position 0, 1 far from it.

        Args:
            gain: 1 at least.
            width: standard deviation over positions, in degrees.
        """
        return 1 + (gain - 1) * torch.exp(-0.5 * (self.x / width) ** 2)

    def circuit(
        self, z: Tensor, attention: Tensor | float = 1.0, recurrent_weight: Tensor | None = None
    ) -> Circuit:
        """The circuits with the input drives `z`, `(..., n)`; time constants in ms.

        Args:
            z: the input drives.
            attention: `A = b / b0`, `(n,)` or a number.
            recurrent_weight: `Wr`, `(n, n)`; None is the identity.
        """
        return Circuit(
            input_drive=BASELINE_GAIN * attention * z,
            inhibitory_drive=(BASELINE_GAIN * self.semisaturation) ** 2,
            recurrent_weight=recurrent_weight,
            normalization_weight=self.normalization_weight,
            tau_y=TAU_Y,
            tau_a=TAU_A,
        )

    def normalized(self, z: Tensor, attention: Tensor | float = 1.0) -> Tensor:
        """Eq. 2: the firing rates `y+`, `(..., n)`, that the circuits with `Wr = I` settle at."""
        power = (attention * z).square()
        return power / (self.semisaturation**2 + power @ self.normalization_weight.mT)


def ring(semisaturation: float, concentration: float = NARROW_TUNING) -> Sheet:
    """36 neurons of one position, for stimuli that cover their receptive fields."""
    position = torch.zeros(1, dtype=torch.float64)
    return Sheet(position, _orientations(36), semisaturation, concentration)


def line(semisaturation: float) -> Sheet:
    """6 neurons at each of 33 positions, half a degree apart."""
    positions = torch.arange(-16, 17, dtype=torch.float64) / 2
    return Sheet(positions, _orientations(6), semisaturation)


def tuning(difference: Tensor, concentration: float) -> Tensor:
    """`t = exp(k (cos 2 difference - 1))`, 1 at a difference of 0; of any shape, in degrees."""
    return torch.exp(concentration * (torch.cos(torch.deg2rad(2 * difference)) - 1))


def covered(x: Tensor, radius: Tensor) -> Tensor:
    """The part of Gaussian receptive fields around `x` that lies between -radius and radius."""
    scale = math.sqrt(2) * RECEPTIVE_FIELD
    return 0.5 * (torch.erf((x + radius) / scale) - torch.erf((x - radius) / scale))


def sharpening_weight(sheet: Sheet) -> Tensor:
    """`Wr` of a ring, `(n, n)`: similar orientations excite each other, all inhibit each other.

    The inhibition balances the excitation, and the largest singular value is 1.
    """
    weight = tuning(sheet.theta[:, None] - sheet.theta, RECURRENT_TUNING)
    weight = weight - weight.mean()
    return weight / torch.linalg.matrix_norm(weight, 2)


def _orientations(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * (180 / count) - 90
