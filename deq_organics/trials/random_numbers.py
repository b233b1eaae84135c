"""Random numbers that belong to a trial, whatever else is computed beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Streams"]


class Streams:
    """Standard normal numbers, a stream for each seed and trial.

    They are drawn on the CPU in double precision: the same for every device and dtype.
    """

    def __init__(self, seeds: Sequence[int], trials: range, width: int, like: Tensor) -> None:
        self.width, self.count = width, len(seeds) * len(trials)
        self._shape, self._like = (len(seeds), len(trials)), like
        self._generators = [
            np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(trial,))))
            for seed in seeds
            for trial in trials
        ]

    def draw(self, steps: int) -> Tensor:
        """Those of the next steps, ``(steps, S, R, width)`` for ``S`` seeds and ``R`` trials."""
        return self._draw(steps, self.width)

    def draw_first(self, width: int) -> Tensor:
        """Those that come before any step, ``(S, R, width)``."""
        return self._draw(1, width)[0]

    def _draw(self, steps: int, width: int) -> Tensor:
        numbers = np.empty((len(self._generators), steps, width))
        for row, generator in zip(numbers, self._generators, strict=True):
            generator.standard_normal(out=row)
        found = torch.from_numpy(numbers).to(self._like.device, self._like.dtype)
        return found.transpose(0, 1).unflatten(1, self._shape)
