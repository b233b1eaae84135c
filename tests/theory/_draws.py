"""Random circuits for the theorems: n from 1 to 32, all parameters over decades."""

import itertools
from collections.abc import Iterator

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from deq_organics import Circuit

DOUBLE = torch.float64
MODELS = list(itertools.product((2.0, 1.5, 3.0), (False, True)))
# 10,008 circuits in all; the large ones are fewer because dense eigenvalues take n^3.
SIZES = {1: 1500, 2: 2004, 3: 2004, 5: 1800, 8: 1200, 13: 900, 21: 360, 32: 240}
TOTAL = sum(SIZES.values())


class Draw:
    """Random tensors of one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=DOUBLE)

    def gaussian(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=DOUBLE)

    def decades(self, count: float, *shape: int) -> Tensor:
        """Log-uniform over so many decades around 1."""
        return 10.0 ** (count * (self.uniform(*shape) - 0.5))


def batches(seed: int) -> Iterator[tuple[Draw, int, int, float, bool]]:
    """Sizes of batches that have 10,000 circuits together: draw, n, count, exponent, rectified."""
    draw = Draw(seed)
    for n, total in SIZES.items():
        for exponent, rectified in MODELS:
            yield draw, n, total // len(MODELS), exponent, rectified


def identity_circuits(seed: int) -> Iterator[Circuit]:
    """Circuits with ``Wr = I`` whose other parameters differ from neuron to neuron."""
    for draw, n, count, exponent, rectified in batches(seed):
        yield Circuit(
            draw.gaussian(count, n) * draw.decades(4, count, 1),
            draw.decades(4, count, n),
            None,
            draw.uniform(count, n, n) * draw.decades(4, count, 1, 1),
            draw.decades(4, count, n),
            draw.decades(4, count, n),
            exponent,
            rectified,
        )


def equal_circuits(seed: int) -> Iterator[Circuit]:
    """Circuits as Theorem 4.4 has them: equal neurons that normalize each other equally."""
    for draw, n, count, exponent, rectified in batches(seed):
        yield Circuit(
            draw.gaussian(count, n) * draw.decades(2, count, 1),
            draw.decades(2, count, 1).expand(-1, n),
            None,
            draw.decades(2, count, 1, 1).expand(-1, n, n),
            draw.decades(4, count, 1).expand(-1, n),
            draw.decades(4, count, 1).expand(-1, n),
            exponent,
            rectified,
        )


def matched_deviation(found: Tensor, expected: Tensor) -> np.ndarray:
    """Largest relative deviation ``(B,)`` of two sets ``(B, k)`` of numbers in any order."""
    distance = (found.unsqueeze(-1) - expected.unsqueeze(-2)).abs() / expected.abs().unsqueeze(-2)
    matrices = distance.numpy()
    return np.array(
        [matrix[scipy.optimize.linear_sum_assignment(matrix)].max() for matrix in matrices]
    )
