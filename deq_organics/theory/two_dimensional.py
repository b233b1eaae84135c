"""Theorems 5.1 and 5.2, completed: all fixed points of the circuit with one neuron of each type.

With ``A = 1 - wr``, ``B = wr c^(1/m)`` and ``k = w^(1/m) |d|`` every fixed point of the main model
(Eq. 16) is a root ``u`` of one equation in one unknown,

    phi(u) = A u / (1 + |u|^m)^(1/m) + B u = k,

by ``a = c (1 + |u|^m)`` and ``w^(1/m) y = sign(d) u / (1 + |u|^m)^(1/m)``. ``phi`` is odd and has
at most two folds, at ``u = +-u*``, so that its roots are separated by what is known in advance. At
a root the Jacobian's determinant has the sign of ``phi'(u)``, and its trace is
``-d / (y tau_y) - c / (a tau_a)``. Hence, for any time constants and any exponent:

- ``0 < wr <= 1``: one fixed point, ``y`` has the sign of ``d``; stable (Theorem 5.1).
- ``wr > 1``: that one, and two more of the other sign where ``|d|`` is below the critical drive: a
  saddle, and one that is stable where its trace is negative (Theorem 5.2).
- ``wr < 0``: a saddle of the other sign, and below the critical drive two more of the same sign, of
  which just one is stable. Above it the circuit has no stable fixed point.
- ``wr = 0``: one fixed point, stable, where ``k < 1``, else none.

The critical drive is that of the fold, ``phi(u*) = k``:
``(k / |A|)^(m/(m+1)) + (|B| / |A|)^(m/(m+1)) = 1``, an astroid for ``m = 2``.

In the rectified model (Eq. 102) those with ``y > 0`` remain, and a silent, stable one appears where
``d <= 0``: ``y = d``, ``a = c``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive
from ..circuit import Circuit

__all__ = ["FixedPoints2D", "critical_drive_2d", "fixed_points_2d"]

_BISECTIONS = 100
_NEWTON_STEPS = 4


@dataclass(frozen=True)
class FixedPoints2D:
    """All fixed points of circuits with one neuron of each type, at most three each."""

    y: Tensor
    """``(..., 3)``, NaN where there are fewer. First the one whose sign is that of the drive and
    which can be stable, if there is one."""
    a: Tensor
    """``(..., 3)``, positive, NaN where there are fewer."""
    stable: Tensor
    """Boolean ``(..., 3)``: both eigenvalues of the Jacobian have negative real parts."""
    count: Tensor
    """How many there are, ``(...)``: 0 to 3. At a fold the two that merge there are not counted."""


class _Reduced(NamedTuple):
    """The one equation ``A u / (1 + |u|^m)^(1/m) + B u = k``, each tensor ``(...)``, float64."""

    slope: Tensor
    """``A``"""
    tail: Tensor
    """``B``"""
    drive: Tensor
    """``k >= 0``"""
    exponent: float | Tensor

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """Whether ``phi`` has folds, where (``u* >= 0``) and its magnitude ``|phi(u*)|`` there."""
        slope, tail, m = self.slope, self.tail, self.exponent
        folds = (slope * tail < 0) & (tail.abs() < slope.abs())
        ratio = torch.where(folds, tail.abs() / slope.abs(), 1.0).pow(m / (m + 1.0))
        position = ((1.0 - ratio) / ratio).pow(1.0 / m)
        return folds, position, slope.abs() * (1.0 - ratio).pow((m + 1.0) / m)

    def excess(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``phi(u) - k`` and its derivative by ``u``."""
        m = self.exponent
        size = 1.0 + u.abs().pow(m)
        saturating = u / size.pow(1.0 / m)
        return (
            self.slope * saturating + self.tail * u - self.drive,
            self.slope / size.pow((m + 1.0) / m) + self.tail,
        )


@torch.no_grad()
def fixed_points_2d(circuit: Circuit) -> FixedPoints2D:
    """All fixed points of circuits with ``n = 1``, and which of them are stable.

    Args:
        circuit: Circuits with one neuron of each type and a positive normalization weight.

    Returns:
        The fixed points, computed in double precision; without a gradient.

    Raises:
        ValueError: ``n`` is not 1, or a normalization weight is not positive.
    """
    reduced = _reduce(circuit)
    u, exists, rising = _roots(reduced)
    d, c, w, tau_y, tau_a = (
        tensor.double()
        for tensor in (
            circuit.input_drive,
            circuit.inhibitory_drive,
            circuit.normalization_weight.squeeze(-1),
            circuit.tau_y,
            circuit.tau_a,
        )
    )
    size = 1.0 + u.abs().pow(circuit.exponent)
    y = torch.where(d < 0, -1.0, 1.0) * u / (w * size).pow(1.0 / circuit.exponent)
    a = c * size
    # d / y is phi(u) / u, also where both vanish.
    at_rest = (reduced.slope + reduced.tail).unsqueeze(-1)
    leak = torch.where(y == 0, at_rest, d / y)
    stable = rising & (leak / tau_y + c / (a * tau_a) > 0)
    exists = exists & torch.isfinite(a)
    if circuit.rectified:
        exists = exists & (y > 0)
        # The silent fixed point; these places are free, because y has the other sign there.
        silent = torch.cat([d < 0, d == 0, torch.zeros_like(d == 0)], -1)
        y, a = torch.where(silent, d, y), torch.where(silent, c, a)
        stable = torch.where(silent, (d < 0) | (at_rest > 0), stable)
        exists = exists | silent
    dtype = circuit.input_drive.dtype
    return FixedPoints2D(
        torch.where(exists, y, torch.nan).to(dtype),
        torch.where(exists, a, torch.nan).to(dtype),
        stable & exists,
        exists.sum(-1),
    )


@torch.no_grad()
def critical_drive_2d(circuit: Circuit) -> Tensor:
    """The ``|d|`` at which two fixed points of the main model merge, ``(...)``; 0 where none do.

    Below it circuits with ``n = 1`` have three fixed points, above it one (none for ``wr = 0``).

    Raises:
        ValueError: ``n`` is not 1, or a normalization weight is not positive.
    """
    reduced = _reduce(circuit)
    folds, _, peak = reduced.fold()
    w = circuit.normalization_weight[..., 0, 0].double()
    critical = torch.where(folds, peak, 0.0) / w.pow(1.0 / reduced.exponent)
    return critical.to(circuit.input_drive.dtype)


def _reduce(circuit: Circuit) -> _Reduced:
    if circuit.n != 1:
        raise ValueError(f"circuit: got n = {circuit.n}, expected n = 1, one neuron of each type")
    check_positive("normalization_weight", circuit.normalization_weight)
    m, shape = circuit.exponent, circuit.batch_shape
    if isinstance(m, Tensor):
        m = m[..., 0].double().expand(shape)
    d = circuit.input_drive[..., 0].double().expand(shape)
    c = circuit.inhibitory_drive[..., 0].double().expand(shape)
    w = circuit.normalization_weight[..., 0, 0].double().expand(shape)
    wr = circuit.recurrent_weight
    recurrent = torch.ones_like(d) if wr is None else wr[..., 0, 0].double().expand(shape)
    root = c.pow(1.0 / m)
    return _Reduced(1.0 - recurrent, recurrent * root, w.pow(1.0 / m) * d.abs(), m)


def _roots(reduced: _Reduced) -> tuple[Tensor, Tensor, Tensor]:
    """Roots ``u``, which of them exist, and whether ``phi`` rises there, each ``(..., 3)``.

    First the root of the drive's sign that can be stable, then the saddle that all circuits with
    ``wr < 0`` have, then the last of three.
    """
    k, m = reduced.drive, reduced.exponent
    folds, fold, peak = reduced.fold()
    three = folds & (k < peak)
    expansive, no_recurrence = reduced.tail > 0, reduced.tail == 0
    # Beyond this |u| the tail alone is larger than all else.
    far = (k + reduced.slope.abs()) / torch.where(no_recurrence, 1.0, reduced.tail.abs())
    inner = torch.where(folds, fold, 0.0)
    zero = torch.zeros_like(far)
    low = [torch.where(expansive, inner, zero), torch.where(expansive, -inner, -far)]
    high = [torch.where(expansive, far, inner), torch.where(expansive, zero, -inner)]
    low.append(torch.where(expansive, -far, inner))
    high.append(torch.where(expansive, -inner, far))
    always, never = torch.ones_like(three), torch.zeros_like(three)
    rising = torch.stack([always, never, expansive], -1)
    exists = torch.stack([expansive | three, ~expansive | three, three], -1)
    u = _solve_monotone(reduced, torch.stack(low, -1), torch.stack(high, -1), rising)

    saturates = no_recurrence & (k < 1.0)
    only = torch.stack([saturates, never, never], -1)
    alone = k / (1.0 - torch.where(saturates, k, 0.0).pow(m)).pow(1.0 / m)
    u = torch.where(only, alone.unsqueeze(-1), u)
    return u, torch.where(no_recurrence.unsqueeze(-1), only, exists), rising


def _solve_monotone(reduced: _Reduced, low: Tensor, high: Tensor, rising: Tensor) -> Tensor:
    """The root of ``phi = k`` in each interval, ``(..., 3)``: bisection, then Newton's method."""
    slope, tail, drive = (part.unsqueeze(-1) for part in reduced[:3])
    m = reduced.exponent
    if isinstance(m, Tensor):
        m = m.unsqueeze(-1)
    equation = _Reduced(slope, tail, drive, m)
    first, last = low, high
    for _ in range(_BISECTIONS):
        middle = 0.5 * low + 0.5 * high
        above = (equation.excess(middle)[0] > 0) == rising
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    u = 0.5 * low + 0.5 * high
    for _ in range(_NEWTON_STEPS):
        excess, derivative = equation.excess(u)
        step = torch.where(derivative == 0, 0.0, excess / derivative)
        better = torch.minimum(torch.maximum(u - step, first), last)
        u = torch.where(equation.excess(better)[0].abs() <= excess.abs(), better, u)
    return u
