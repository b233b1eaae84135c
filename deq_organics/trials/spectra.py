"""Spectra of sampled trials by Welch's method, and what it gives on average."""

from collections.abc import Iterator
from itertools import islice

import torch
from scipy import signal
from torch import Tensor

from ..memory import check_memory

__all__ = ["Segments", "expected_density", "welch_density"]

# Complex numbers of the trials that are transformed at once.
_AT_A_TIME = 2**24


class Segments:
    """How Welch's method cuts records of ``samples`` values, ``step`` apart."""

    def __init__(self, samples: int, step: float, size: int, overlap: int, window: str) -> None:
        self.samples, self.step, self.size = samples, step, size
        self.starts = range(0, samples - size + 1, size - overlap)
        self.taper = torch.from_numpy(signal.get_window(window, size))
        power = float(self.taper.square().sum())
        self.frequency = torch.fft.rfftfreq(size, step, dtype=torch.float64)
        mirrored = torch.full_like(self.frequency, 2.0)
        mirrored[0] = 1.0
        if size % 2 == 0:
            mirrored[-1] = 1.0
        self.scale = mirrored * step / power
        """Of the squared amplitude at each frequency, one-sided as in ``scipy.signal.welch``."""


def welch_density(deviations: Tensor, cut: Segments) -> Tensor:
    """Cross-spectral densities ``(F, k, k)`` of trials ``(R, T, k)`` of mean zero."""
    trials, _, k = deviations.shape
    count = cut.frequency.numel()
    total = torch.zeros(count, k, k, dtype=torch.complex128, device=deviations.device)
    taper = cut.taper.to(deviations.device).unsqueeze(-1)
    for start in cut.starts:
        part = deviations[:, start : start + cut.size]
        for some in part.split(max(1, _AT_A_TIME // (cut.size * k))):
            amplitude = torch.fft.rfft(some.double() * taper, dim=1).transpose(0, 1)
            total += amplitude.mH @ amplitude
    scale = cut.scale.to(deviations.device) / (trials * len(cut.starts))
    return total * scale[:, None, None]


def expected_density(lags: Iterator[Tensor], cut: Segments) -> Tensor:
    """The mean of :func:`welch_density` for stationary noise: aliases and window included.

    Args:
        lags: Covariances ``E[x(t + k step) x(t)^T]``, ``(..., k, k)``, of lags that count up.
        cut: See there.

    Returns:
        ``(..., F, k, k)``, complex128.
    """
    first = next(lags)
    shape = (*first.shape[:-2], cut.size, *first.shape[-2:])
    check_memory("theory_spectrum: lags", shape, torch.complex128, first.device, 3.0)
    rest = islice(lags, cut.size - 1)
    # Entry [i, j] of a cross-spectrum has the product of x_i with a later x_j.
    covariance = torch.stack([first, *rest], -3).mT
    # The window's products with itself, shifted.
    padded = torch.fft.rfft(cut.taper, 2 * cut.size)
    weight = torch.fft.irfft(padded.abs().square(), 2 * cut.size)[: cut.size]
    weighted = covariance * weight.to(first.device)[:, None, None]
    half = torch.fft.fft(weighted.to(torch.complex128), dim=-3)[..., : cut.frequency.numel(), :, :]
    density = half + half.mH - weighted[..., :1, :, :]
    return density * cut.scale.to(first.device)[:, None, None]
