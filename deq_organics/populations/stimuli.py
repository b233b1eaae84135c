"""What neurons see: tuning curves, apertures, and stimuli that change in time."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_number

__all__ = ["covered", "drifting", "surround", "switched", "tuning"]


def tuning(difference: Tensor, concentration: Tensor | float) -> Tensor:
    """``exp(k (cos 2 difference - 1))``: 1 at a difference of 0, with a period of 180 degrees.

    Args:
        difference: Of two orientations, in degrees, of any shape.
        concentration: ``k``, at least 0; the larger, the narrower.
    """
    return torch.exp(concentration * (torch.cos(torch.deg2rad(2 * difference)) - 1))


def covered(x: Tensor, radius: Tensor | float, receptive_field: float) -> Tensor:
    """The part of Gaussian receptive fields that a stimulus around position 0 covers.

    Args:
        x: Distances of the receptive fields' centres from the stimulus's, in degrees of visual
            angle.
        radius: Of the stimulus, in degrees, infinite for a full field; it broadcasts with ``x``.
        receptive_field: Standard deviation of the receptive fields, in degrees.
    """
    scale = math.sqrt(2) * receptive_field
    return 0.5 * (torch.erf((x + radius) / scale) - torch.erf((x - radius) / scale))


def surround(
    x: Tensor, inner: Tensor | float, outer: Tensor | float, receptive_field: float
) -> Tensor:
    """The part of receptive fields that an annulus covers, between the radii ``inner``, ``outer``.

    Arguments are otherwise those of :func:`covered`.
    """
    return covered(x, outer, receptive_field) - covered(x, inner, receptive_field)


def drifting(
    drive: Tensor, frequency: float, *, modulation: float = 1.0, phase: Tensor | float = 0.0
) -> Callable[[Tensor], Tensor]:
    """A drive that a drifting grating modulates, as a function of the time for ``simulate``.

    ``drive * (1 + modulation * cos(2 pi f t - phase))``: a linear receptive field answers a grating
    that drifts over it so, at the grating's temporal frequency.

    Args:
        drive: Its mean, ``(..., n)``.
        frequency: In hertz; times are in milliseconds.
        modulation: 0 for a complex cell, 1 for a rectified simple cell's.
        phase: In degrees, which broadcasts with ``drive``: of each neuron's position.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is not finite.
    """
    mean = as_float_tensor("drive", drive)
    speed = 2.0 * math.pi * check_number("frequency", frequency) / 1000.0
    depth = check_number("modulation", modulation)
    angle = torch.as_tensor(phase, dtype=mean.dtype, device=mean.device).deg2rad()

    def at(time: Tensor) -> Tensor:
        return mean * (1.0 + depth * torch.cos(speed * time - angle))

    return at


def switched(drives: Sequence[Tensor], times: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A drive that switches, as a function of the time for ``simulate``.

    ``simulate(circuit, t, input_drive=switched(drives, times), jumps=times)``.

    Args:
        drives: One more than ``times``, each ``(..., n)``: the first until the first switch.
        times: Increasing, in the unit of the time constants.

    Raises:
        TypeError: A drive is no floating-point tensor, or a time no number.
        ValueError: The numbers of both do not fit, or times do not increase.
    """
    values = [as_float_tensor(f"drives[{i}]", drive) for i, drive in enumerate(drives)]
    switches = [check_number(f"times[{i}]", time) for i, time in enumerate(times)]
    if len(values) != len(switches) + 1:
        raise ValueError(
            f"drives: got {len(values)} with {len(switches)} times, expected one more than times"
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(switches)):
        raise ValueError(f"times: got {switches}, expected increasing ones")

    def at(time: Tensor) -> Tensor:
        now = values[0]
        for switch, value in zip(switches, values[1:], strict=True):
            now = torch.where(time >= switch, value, now)
        return now

    return at
