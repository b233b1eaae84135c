"""What noise adds to circuits in a step: exact integrals of its sources."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..response.noise_sources import Source

__all__ = ["Kicks"]

# Below this part of a correlation time the closed form loses its digits to a difference.
_SHORT = 0.05


class _Entry(NamedTuple):
    """One noise, for a flat batch of ``B`` circuits."""

    place: slice
    """Of the components ``(y, a)`` that receive it."""
    factor: Tensor
    """``(m, k)``, or ``(B, m, k)``; the diagonal ``(m,)`` where it has no more."""
    diagonal: bool
    tau: Tensor | None
    """``(1, k)`` or ``(B, 1, k)``, float64."""
    multiplicative: bool
    sources: int


class Kicks:
    """The noise of all sources of a batch of circuits, step after step."""

    def __init__(self, sources: Sequence[Source], batch: torch.Size, n: int, like: Tensor) -> None:
        self._entries = [_entry(source, batch, n, like) for source in sources]
        self._like, self._size = like, 2 * n
        self._coefficients: tuple[float, list[tuple[Tensor, ...]]] = (0.0, [])
        self._xi: list[Tensor | None] = []

    @property
    def width(self) -> int:
        """Random numbers that a step needs."""
        return sum(entry.sources * (1 if entry.tau is None else 2) for entry in self._entries)

    @property
    def first_width(self) -> int:
        """Random numbers that the start needs."""
        return sum(entry.sources for entry in self._entries if entry.tau is not None)

    def start(self, numbers: Tensor) -> None:
        """Ornstein-Uhlenbeck sources start in their stationary state, from ``(S, R, width)``."""
        self._xi, used = [], 0
        for entry in self._entries:
            if entry.tau is None:
                self._xi.append(None)
            else:
                self._xi.append(numbers[..., used : used + entry.sources])
                used += entry.sources

    def step(self, length: float, numbers: Tensor, roots: Tensor | None) -> Tensor:
        """The noise's integral over the next step, ``(B or 1, R, 2n)``.

        Args:
            length: The step's.
            numbers: Standard normal ones, ``(S, R, width)``.
            roots: Of the firing rates, ``(B, R, 2n)``; None where no noise is multiplicative.
        """
        if self._coefficients[0] != length:
            self._coefficients = (length, [self._of_step(entry, length) for entry in self._entries])
        total: Tensor | None = None
        used = 0
        for index, (entry, known) in enumerate(
            zip(self._entries, self._coefficients[1], strict=True)
        ):
            first = numbers[..., used : used + entry.sources]
            used += entry.sources
            if entry.tau is None:
                amount = known[0] * first
            else:
                second = numbers[..., used : used + entry.sources]
                used += entry.sources
                decay, gain, own, mixed, rest = known
                xi = self._xi[index]
                assert xi is not None
                amount = gain * xi + mixed * first + rest * second
                self._xi[index] = decay * xi + own * first
            kick = amount * entry.factor if entry.diagonal else amount @ entry.factor.mT
            if entry.multiplicative:
                assert roots is not None
                kick = kick * roots[..., entry.place]
            above, size = entry.place.start, kick.shape[-1]
            if size < self._size:
                kick = torch.nn.functional.pad(kick, (above, self._size - size - above))
            total = kick if total is None else total + kick
        assert total is not None
        return total

    @property
    def multiplicative(self) -> bool:
        return any(entry.multiplicative for entry in self._entries)

    def _of_step(self, entry: _Entry, length: float) -> tuple[Tensor, ...]:
        """The factors of a step, in the circuits' dtype.

        Of white noise the root of the step; of Ornstein-Uhlenbeck noise those of the joint normal
        law of its value at the end and of its integral: decay, gain, own, mixed, rest.
        """
        if entry.tau is None:
            return (self._like.new_tensor(length).sqrt(),)
        tau = entry.tau
        x = length / tau
        lost = -torch.expm1(-x)
        own = (-torch.expm1(-2.0 * x)).sqrt()
        # By powers of x where 2x - 3 + 4 exp(-x) - exp(-2x) would lose its digits.
        series = x**3 * (2 / 3 + x * (-1 / 2 + x * (7 / 30 + x * (-1 / 12 + x * (31 / 1260)))))
        closed = 2.0 * x - 3.0 + 4.0 * torch.exp(-x) - torch.exp(-2.0 * x)
        variance = torch.where(x < _SHORT, series, closed)
        mixed = lost.square() / own
        rest = (variance - mixed.square()).clamp(min=0).sqrt()
        found = (1.0 - lost, tau * lost, own, tau * mixed, tau * rest)
        return tuple(part.to(self._like.dtype) for part in found)


def _entry(source: Source, batch: torch.Size, n: int, like: Tensor) -> _Entry:
    factor, tau = source.factor.detach(), source.tau
    one = all(size == 1 for size in factor.shape[:-2])
    shape = factor.shape[-2:]
    factor = factor.reshape(shape) if one else factor.expand(*batch, *shape).reshape(-1, *shape)
    rows = (factor != 0).any(-1)
    rows = (rows if one else rows.any(0)).nonzero().squeeze(-1)
    low, high = (int(rows[0]), int(rows[-1]) + 1) if rows.numel() else (0, 1)
    place = slice(low, high)
    if tau is not None:
        tau = tau.detach()
        if tau.ndim == 1 or all(size == 1 for size in tau.shape[:-1]):
            tau = tau.reshape(1, -1)
        else:
            tau = tau.expand(*batch, tau.shape[-1]).reshape(-1, 1, tau.shape[-1])
    part = factor[..., place, :]
    diagonal = one and part.shape[0] == shape[-1] and _is_diagonal(part)
    if diagonal:
        part = part.diagonal().clone()
    return _Entry(place, part.to(like.dtype), diagonal, tau, source.multiplicative, int(shape[-1]))


def _is_diagonal(matrix: Tensor) -> bool:
    return bool((matrix == torch.diag(matrix.diagonal())).all())
