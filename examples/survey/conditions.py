"""Random circuits for Conjecture 5.3, under conditions that the survey varies."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deq_organics import Circuit, scale_to_singular_value

Weights = Literal["free", "symmetric", "nonnegative", "positive definite"]


WEIGHTS: tuple[Weights, ...] = get_args(Weights)


@dataclass(frozen=True)
class Condition:
    """A distribution of circuits; what it does not name is as in the paper's experiments.

    Attributes:
        n: neurons of each type.
        weights: which recurrent weights: Gaussian entries ("free"), their symmetric part, their
            magnitudes, or a random rotation of eigenvalues uniform in (0, 1).
        singular_value: to which `Wr` is scaled.
        input_norm: `|z|`, in a random direction.
        semisaturation: the largest `sigma`; each is uniform below it.
    """

    n: int
    weights: Weights
    singular_value: float
    input_norm: float = 1.0
    semisaturation: float = 1.0

    def draw(self, count: int, seed: int) -> Circuit:
        """Circuits with entries of `b0`, `b`, `W` uniform in (0, 1), and equal time constants."""
        generator = torch.Generator().manual_seed(seed)
        n = self.n

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

        def gaussian(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

        wr = gaussian(n, n)
        if self.weights == "symmetric":
            wr = wr + wr.mT
        elif self.weights == "nonnegative":
            wr = wr.abs()
        elif self.weights == "positive definite":
            rotation = torch.linalg.qr(wr).Q
            wr = (rotation * uniform(1, n)) @ rotation.mT
        wr = scale_to_singular_value(wr, self.singular_value)
        z = gaussian(n)
        z = self.input_norm * z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        inhibitory_drive = (uniform(n) * self.semisaturation * uniform(n)).square()
        return Circuit(uniform(n) * z, inhibitory_drive, wr, uniform(n, n))
