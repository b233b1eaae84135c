"""The Jacobian of each circuit in coordinates in which its couplings are balanced.

A diagonal similarity transform changes no eigenvalue, but norms and symmetric parts tell about
eigenvalues only where what a coordinate receives and what it gives are of one size. The structure
of the circuits is kept, so that products cost what the weights cost.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..problem import Problem

__all__ = ["Balanced", "Factors", "balance", "chunks", "linearize", "scales"]

_ITERATIONS = 6
# By how much a ratio of norms counts at most in one iteration.
_LARGEST_FACTOR = 2.0**12
# Entries of matrices at a time: a processor's cache takes less than a GPU needs to be busy.
_ENTRIES_AT_A_TIME, _ENTRIES_ON_A_DEVICE = 2**19, 2**24


class Factors(NamedTuple):
    """As :class:`equations.Linearization`, with a slope in every model."""

    gain: Tensor
    slope: Tensor
    inhibition: Tensor
    excitation: Tensor
    pool: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Factors":
        return Factors(*(function(part) for part in self))


class Balanced(NamedTuple):
    """``D J D^-1`` of each circuit, by its factors; ``J`` is the Jacobian for ``(y, a)``.

    A perturbation ``(p, q)`` in these coordinates obeys
    ``dp/dt = recurrence * Wr (slope * p) - inhibition * q - decay_y * p`` and
    ``dq/dt = pooling * W (excitation * p + pool * q) - decay_a * q``. The factors are ``(B, n)``,
    the decays ``(B, n)`` or ``(1, n)``.
    """

    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    recurrence: Tensor
    slope: Tensor
    inhibition: Tensor
    pooling: Tensor
    excitation: Tensor
    pool: Tensor
    decay_y: Tensor
    decay_a: Tensor

    def apply(self, vector: Tensor) -> Tensor:
        """The product with ``(B, 2n)``."""
        p, q = vector.chunk(2, -1)
        recurrent = equations.matvec(self.recurrent_weight, self.slope * p)
        pooled = equations.matvec(
            self.normalization_weight, torch.addcmul(self.excitation * p, self.pool, q)
        )
        image_p = (self.recurrence * recurrent).addcmul_(self.inhibition, q, value=-1)
        image_q = self.pooling * pooled
        image_p.addcmul_(self.decay_y, p, value=-1)
        image_q.addcmul_(self.decay_a, q, value=-1)
        return torch.cat([image_p, image_q], -1)

    def apply_transposed(self, vector: Tensor) -> Tensor:
        """The transpose's product with ``(B, 2n)``."""
        p, q = vector.chunk(2, -1)
        wr, w = self.recurrent_weight, self.normalization_weight
        recurrent = equations.matvec(None if wr is None else wr.mT, self.recurrence * p)
        pooled = equations.matvec(w.mT, self.pooling * q)
        image_p = torch.addcmul(self.slope * recurrent, self.excitation, pooled)
        image_q = (self.pool * pooled).addcmul_(self.inhibition, p, value=-1)
        image_p.addcmul_(self.decay_y, p, value=-1)
        image_q.addcmul_(self.decay_a, q, value=-1)
        return torch.cat([image_p, image_q], -1)

    def matrix(self) -> Tensor:
        """All entries, ``(B, 2n, 2n)``."""
        size, n = self.pool.shape
        matrix = self.pool.new_zeros(size, 2 * n, 2 * n)
        yy, ya, ay, aa = _blocks(matrix)
        _scaled(self.recurrent_weight, self.recurrence, self.slope, yy)
        ya.diagonal(dim1=-2, dim2=-1).copy_(-self.inhibition)
        _scaled(self.normalization_weight, self.pooling, self.excitation, ay)
        _scaled(self.normalization_weight, self.pooling, self.pool, aa)
        yy.diagonal(dim1=-2, dim2=-1).sub_(self.decay_y)
        aa.diagonal(dim1=-2, dim2=-1).sub_(self.decay_a)
        return matrix

    def dissipation(self) -> Tensor:
        """Minus the matrix and its transpose, ``(B, 2n, 2n)``, without the block below."""
        size, n = self.pool.shape
        matrix = self.pool.new_empty(size, 2 * n, 2 * n)
        yy, ya, _, aa = _blocks(matrix)
        wr, w = self.recurrent_weight, self.normalization_weight
        turned = None if wr is None else wr.mT.contiguous()
        for block, weight, left, right in (
            (yy, (wr, turned), self.recurrence, self.slope),
            (aa, (w, w.mT.contiguous()), self.pooling, self.pool),
        ):
            _scaled(weight[0], -left, right, block)
            block.sub_(_scaled(weight[1], right, left, torch.empty_like(block)))
        _scaled(w.mT.contiguous(), -self.excitation, self.pooling, ya)
        ya.diagonal(dim1=-2, dim2=-1).add_(self.inhibition)
        yy.diagonal(dim1=-2, dim2=-1).add_(self.decay_y, alpha=2)
        aa.diagonal(dim1=-2, dim2=-1).add_(self.decay_a, alpha=2)
        return matrix

    def map(self, function: Callable[[Tensor], Tensor]) -> "Balanced":
        wr = self.recurrent_weight
        return Balanced(None if wr is None else function(wr), *(function(p) for p in self[1:]))

    def length(self) -> Tensor:
        """The Frobenius norm ``(B,)`` without the decays."""
        wr, w = self.recurrent_weight, self.normalization_weight
        wr, w = None if wr is None else wr.square(), w.square()
        inputs = self.excitation.square() + self.pool.square()
        squares = self.recurrence.square() * equations.matvec(wr, self.slope.square())
        squares = squares + self.pooling.square() * equations.matvec(w, inputs)
        return (squares + self.inhibition.square()).sum(-1).sqrt()

    def select(self, index: Tensor) -> "Balanced":
        """The circuits chosen by a mask ``(B,)`` or by indices."""
        size = self.pool.shape[0]
        wr, w = self.recurrent_weight, self.normalization_weight
        return Balanced(
            wr if wr is None or wr.ndim == 2 else wr[index],
            w if w.ndim == 2 else w[index],
            *(part if part.shape[0] != size else part[index] for part in self[2:]),
        )


def _blocks(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the four quarters, row by row."""
    n = matrix.shape[-1] // 2
    upper, lower = matrix[:, :n], matrix[:, n:]
    return upper[..., :n], upper[..., n:], lower[..., :n], lower[..., n:]


def _scaled(weight: Tensor | None, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """``D(left) weight D(right)`` into ``out``."""
    if weight is None:
        out.zero_().diagonal(dim1=-2, dim2=-1).copy_(left * right)
        return out
    return torch.mul(left.unsqueeze(-1), weight, out=out).mul_(right.unsqueeze(-2))


def chunks(index: Tensor, n: int) -> tuple[Tensor, ...]:
    """Parts of the circuits ``index`` ``(B,)`` whose Jacobians are worked on at the same time."""
    entries = _ENTRIES_AT_A_TIME if index.device.type == "cpu" else _ENTRIES_ON_A_DEVICE
    return index.split(max(1, entries // (2 * n) ** 2)) if index.numel() else ()


def linearize(problem: Problem, y: Tensor, a: Tensor) -> Factors:
    """The Jacobian's factors at states ``(B, n)``."""
    lin = problem.linearize(y, a)
    slope = torch.ones_like(lin.gain) if lin.slope is None else lin.slope
    return Factors(lin.gain, slope, lin.inhibition, lin.excitation, lin.pool)


def balance(
    problem: Problem,
    lin: Factors,
    scale: tuple[Tensor, Tensor],
    rate: tuple[Tensor, Tensor],
) -> Balanced:
    """Express Jacobians in coordinates ``(scale_y * y, scale_a * a)``, with rates ``1 / tau``."""
    (scale_y, scale_a), (rate_y, rate_a) = scale, rate
    forward_y = scale_y * rate_y
    return Balanced(
        problem.recurrent_weight,
        problem.normalization_weight,
        recurrence=forward_y * lin.gain,
        slope=lin.slope / scale_y,
        inhibition=forward_y * lin.inhibition / scale_a,
        pooling=scale_a * rate_a,
        excitation=lin.excitation / scale_y,
        pool=lin.pool / scale_a,
        decay_y=rate_y,
        decay_a=rate_a,
    )


def scales(problem: Problem, lin: Factors) -> tuple[Tensor, Tensor]:
    """Osborne's scaling of the Jacobians for ``tau = 1``, ``(B, n)`` for ``y`` and for ``a``.

    Each iteration moves every coordinate towards equal sums of what it receives and of what it
    gives, by half a step, since all move at once.
    """
    slope = lin.slope
    wr, w = problem.recurrent_weight, problem.normalization_weight
    wr = None if wr is None else wr.abs()
    turned = None if wr is None else wr.mT
    gain, inhibition, excitation = lin.gain.abs(), lin.inhibition.abs(), lin.excitation.abs()
    own_y, own_a = gain * slope, lin.pool * w.diagonal(dim1=-2, dim2=-1)
    if wr is not None:
        own_y = own_y * wr.diagonal(dim1=-2, dim2=-1)
    scale_y, scale_a = torch.ones_like(gain), torch.ones_like(gain)
    for _ in range(_ITERATIONS):
        back = equations.matvec(w.mT, scale_a)
        taken_y = gain * equations.matvec(wr, slope / scale_y) + inhibition / scale_a
        given_y = slope * equations.matvec(turned, scale_y * gain) + excitation * back
        taken_a = equations.matvec(w, excitation / scale_y + lin.pool / scale_a)
        given_a = torch.addcmul(lin.pool * back, inhibition, scale_y)
        scale_y = scale_y * _step(scale_y * taken_y - own_y, given_y / scale_y - own_y)
        scale_a = scale_a * _step(scale_a * taken_a - own_a, given_a / scale_a - own_a)
    return scale_y, scale_a


def _step(taken: Tensor, given: Tensor) -> Tensor:
    """``(given / taken)^(1/4)`` within bounds, 1 where that is not defined."""
    ratio = given.clamp_min(0.0) / taken.clamp_min(0.0)
    factor = ratio.clamp_(1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR).sqrt_().sqrt_()
    return torch.where(factor.isnan(), 1.0, factor)
