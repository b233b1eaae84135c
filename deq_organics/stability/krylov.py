"""Krylov spaces of many matrices at once, by Arnoldi's method."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Krylov", "arnoldi"]

_SEED = 104729
# A vector that is this small after orthogonalization is none: the space is invariant.
_BREAKDOWN = 1e-13


class Krylov(NamedTuple):
    """Orthonormal bases and what the operator does to them; zero where the space was exhausted."""

    basis: Tensor
    """``(B, m + 1, 2n)``"""
    hessenberg: Tensor
    """``(B, m + 1, m)``"""


def arnoldi(apply: Callable[[Tensor], Tensor], like: Tensor, dimension: int) -> Krylov:
    """Krylov spaces of an operator on ``(B, 2n)``, ``m = dimension``, for ``like`` ``(B, n)``.

    They start from one random vector, always the same.
    """
    size, order = like.shape[0], 2 * like.shape[1]
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(order, generator=generator, dtype=torch.float64, device="cpu").to(like)
    basis = like.new_zeros(size, dimension + 1, order)
    hessenberg = like.new_zeros(size, dimension + 1, dimension)
    basis[:, 0] = start / start.norm()
    for step in range(dimension):
        image = apply(basis[:, step])
        before = image.norm(dim=-1)
        known = basis[:, : step + 1]
        # Twice is enough (Kahan and Parlett): the basis stays orthogonal to rounding.
        for _ in range(2):
            overlap = torch.bmm(known, image.unsqueeze(-1))
            image = image - torch.bmm(overlap.mT, known).squeeze(1)
            hessenberg[:, : step + 1, step] += overlap.squeeze(-1)
        length = image.norm(dim=-1)
        length = torch.where(length > _BREAKDOWN * before, length, 0.0)
        hessenberg[:, step + 1, step] = length
        inverse = torch.where(length > 0, 1.0 / length, 0.0)
        basis[:, step + 1] = image * inverse.unsqueeze(-1)
    return Krylov(basis, hessenberg)
