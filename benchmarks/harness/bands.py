"""Simultaneous bands for estimates from independent trials: how far off, in half-widths.

Every function returns deviations in units of its band's half-width on that side: above 1 is
outside. ``level`` is the error that all comparisons of a call may have together, by Bonferroni.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

__all__ = ["coherence_deviations", "degrees_of_freedom", "mean_deviations", "power_deviations"]

Array = npt.NDArray[np.float64]
_NODES = 200


def mean_deviations(samples: Array, expected: Array, level: float) -> Array:
    """Of means over trials ``(R, ...)``, by Student's law."""
    trials = len(samples)
    error = samples.std(0, ddof=1) / np.sqrt(trials)
    width = stats.t.isf(level / expected.size / 2, trials - 1)
    return np.abs(samples.mean(0) - expected) / error / width


def degrees_of_freedom(power: Array, size: int, trials: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Of each bin's squared amplitude, ``(F,)``, and which of the amplitudes are real.

    The mean over trials takes one of these. A complex amplitude has two degrees of freedom; beside
    the ends the Hann window correlates it with its conjugate: by 1/6 where the spectrum is flat,
    by more where it falls from the end.

    Args:
        power: One-sided densities ``(F, k)`` without the window.
        size: Samples of a record.
        trials: How many.
    """
    bins = len(power)
    independent = trials - 1.0
    freedom = np.full(bins, 2.0 * independent)
    real = np.zeros(bins, bool)
    ends = [0, bins - 1] if size % 2 == 0 else [0]
    for end in ends:
        beside = 1 if end == 0 else bins - 2
        # The end has no mirror image, so that its one-sided density counts once.
        at = power[end] * (2.0 if end == 0 else 1.0)
        common = np.max(at / (4.0 * power[beside] + at))
        freedom[beside] = 2.0 * independent / (1.0 + common**2)
    for end in ends:
        freedom[end], real[end] = independent, True
    return freedom, real


def power_deviations(found: Array, expected: Array, freedom: Array, level: float) -> Array:
    """Of powers ``(F, k)``, by the chi-square law of each bin."""
    tail, degrees = level / found.size / 2, freedom[:, None]
    ratio = found / expected - 1.0
    lower, upper = (stats.chi2.ppf(p, degrees) / degrees - 1.0 for p in (tail, 1.0 - tail))
    return ratio / np.where(ratio < 0, lower, upper)


def coherence_deviations(
    found: Array, expected: Array, freedom: Array, real: npt.NDArray[np.bool_], level: float
) -> Array:
    """Of magnitude-squared coherences ``(F, pairs)``, by their exact law for normal amplitudes."""
    tail = level / found.size / 2
    result = np.empty(found.shape)
    kinds = {(degrees, is_real) for degrees, is_real in zip(freedom, real, strict=True)}
    for degrees, is_real in kinds:
        rows = (freedom == degrees) & (real == is_real)
        result[rows] = _coherence(found[rows], expected[rows], degrees, bool(is_real), tail)
    return result


def _coherence(found: Array, expected: Array, degrees: float, real: bool, tail: float) -> Array:
    """In Fisher's scale, in which the band hardly depends on the coherence."""
    grid, below, above = _widths(degrees, real, tail)
    place = _fisher(expected)
    off = _fisher(found) - place
    lower, upper = np.interp(place, grid, below), np.interp(place, grid, above)
    # At a coherence of 0 there is nothing below.
    return np.where(off < 0, off / np.where(lower < 0, lower, -np.inf), off / upper)


@cache
def _widths(degrees: float, real: bool, tail: float) -> tuple[Array, Array, Array]:
    """Of the bands to both sides, over the coherence, all three in Fisher's scale."""
    grid = np.concatenate([[0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6], np.linspace(0.8, 3.2, 7)])
    ends = [
        np.array([_fisher(_quantile(p, float(np.tanh(z) ** 2), degrees, real)) for z in grid])
        for p in (tail, 1.0 - tail)
    ]
    return grid, ends[0] - grid, ends[1] - grid


def _fisher(coherence: Array | float) -> Array:
    return np.arctanh(np.sqrt(np.clip(coherence, 0.0, 1.0 - 1e-15)))


def _quantile(p: float, truth: float, degrees: float, real: bool) -> float:
    """Of the estimate, a mixture of beta laws over a negative binomial one."""
    amplitudes = degrees if real else degrees / 2.0
    half = 0.5 if real else 1.0
    size = half * amplitudes
    mean = size * truth / (1.0 - truth)
    spread = np.sqrt(size * truth) / (1.0 - truth)
    low, high = max(0.0, np.floor(mean - 9 * spread - 9)), np.ceil(mean + 9 * spread + 40)
    stride = max(1.0, np.floor((high - low) / _NODES))
    count = np.arange(low, high + 1, stride)
    weight = stats.nbinom.pmf(count, size, 1.0 - truth)
    weight = weight / weight.sum()
    first, second = half + count, half * (amplitudes - 1.0)

    def off(coherence: float) -> float:
        if p < 0.5:
            return float(weight @ special.betainc(first, second, coherence)) - p
        return (1.0 - p) - float(weight @ special.betainc(second, first, 1.0 - coherence))

    return float(optimize.brentq(off, 0.0, 1.0, xtol=1e-9))
