"""Peaks of power spectra, within a band of frequencies."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_number

__all__ = ["Peak", "highest_peaks"]


class Peak(NamedTuple):
    """The highest peak of each component's power; NaN where there is none."""

    frequency: Tensor
    """In cycles per unit of time, ``(..., 2n)``, or ``(..., p)`` of read-outs."""
    power: Tensor
    """Of the parabola's top, of the same shape."""


def highest_peaks(
    frequency: Tensor, power: Tensor, sided: str, band: tuple[float, float] | None
) -> Peak:
    """See :meth:`CrossSpectrum.peak`; ``power`` is ``(..., F, k)`` at frequencies ``(F,)``."""
    order = frequency.argsort()
    frequency, power = frequency[order], power.index_select(-2, order)
    if sided == "one":  # The mirror image doubles all but zero frequency: no step of the spectrum.
        power = power * torch.where(frequency > 0, 1.0, 2.0).unsqueeze(-1)
    if band is not None:
        if not (isinstance(band, tuple | list) and len(band) == 2):
            raise TypeError(f"band: got {band!r}, expected (lowest, highest)")
        low, high = (check_number(f"band[{i}]", edge) for i, edge in enumerate(band))
        inside = (frequency >= low) & (frequency <= high)
        if int(inside.sum()) < 3:
            raise ValueError(
                f"band: got {band} with {int(inside.sum())} of the frequencies, expected 3 at least"
            )
        frequency, power = frequency[inside], power[..., inside, :]
    elif len(frequency) < 3:
        raise ValueError(f"frequency: got {len(frequency)}, expected 3 at least for a peak")
    if not (frequency.diff() > 0).all():
        raise ValueError("frequency: got one twice, expected different ones for a peak")
    left, middle, right = power[..., :-2, :], power[..., 1:-1, :], power[..., 2:, :]
    is_peak = (middle > left) & (middle > right)
    found, where = torch.where(is_peak, middle, -1.0).max(-2, keepdim=True)
    heights = [part.gather(-2, where).squeeze(-2) for part in (left, middle, right)]
    places = [frequency[where.squeeze(-2) + shift] for shift in range(3)]
    known = found.squeeze(-2) > 0
    top = _top(places, [torch.where(known, height, 1.0) for height in heights])
    return Peak(*(torch.where(known, part, torch.nan) for part in top))


def _top(places: list[Tensor], heights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where the parabola through three logarithms of heights is highest, and how high."""
    tiny = torch.finfo(heights[0].dtype).tiny
    logs = [height.clamp(min=tiny).log() for height in heights]
    before, after = places[0] - places[1], places[2] - places[1]
    first, last = (logs[0] - logs[1]) / before, (logs[2] - logs[1]) / after
    curvature = (last - first) / (after - before)
    slope = first - curvature * before
    # Equal heights stand for no peak at all.
    bent = torch.where(curvature < 0, curvature, -1.0)
    shift = torch.where(curvature < 0, -slope / (2.0 * bent), 0.0)
    return places[1] + shift, (logs[1] + 0.5 * slope * shift).exp()
