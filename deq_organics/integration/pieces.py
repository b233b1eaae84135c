"""Stretches of time within which a vector field is smooth: steps end where one meets the next."""

import torch
from torch import Tensor

from .method import VectorField, is_autonomous

__all__ = ["Confined", "Pieces"]

# How far inside of its piece a field is evaluated at the least, in parts of the time at its edge:
# a few roundings, so that `t >= 5` and `t > 5` both mean the piece after 5 where that is stepped.
_INSIDE = 2.0**-44
# Where that time is zero, in parts of the piece.
_INSIDE_AT_ZERO = 2.0**-48


class Pieces:
    """The pieces of ``B`` samples, each between two times at which its field may jump."""

    def __init__(self, breaks: Tensor, first: Tensor, last: Tensor) -> None:
        """Between the times ``first`` and ``last``, outside of which no field is evaluated.

        Args:
            breaks: Times ``(B, K)``, or ``(1, K)`` for all, float64; infinity stands for none. Of
                those that are the same the first in the list has the gradient.
            first: A number, float64, as ``last``.
            last: See there.
        """
        self._first, self._last = first.detach(), last.detach()
        ordered = breaks.sort(dim=-1, stable=True).values
        known = ordered.detach()
        again = torch.zeros_like(known, dtype=torch.bool)
        again[..., 1:] = known[..., 1:] == known[..., :-1]
        ordered = torch.where(again, torch.inf, ordered).sort(dim=-1, stable=True).values
        endless = ordered.new_full((*ordered.shape[:-1], 1), torch.inf)
        self._edges = torch.cat([-endless, ordered, endless], -1)

    @property
    def edges(self) -> Tensor:
        """From minus infinity to infinity, ``(B, K + 2)``; they may have a gradient."""
        return self._edges

    @property
    def broken(self) -> bool:
        """Whether any sample has more than one piece."""
        return self._edges.shape[-1] > 2

    def take(self, index: Tensor) -> "Pieces":
        """Those of the samples at the indices ``(B',)``."""
        taken = Pieces.__new__(Pieces)
        taken._first, taken._last = self._first, self._last
        taken._edges = self._edges if self._edges.shape[0] == 1 else self._edges[index]
        return taken

    def at(self, time: Tensor) -> Tensor:
        """The piece that begins at or before each of the times ``(B,)``, an index ``(B,)``."""
        return (self._edges.detach() <= time.unsqueeze(-1)).sum(-1) - 1

    def start(self, piece: Tensor) -> Tensor:
        return self._edge(piece)

    def end(self, piece: Tensor) -> Tensor:
        return self._edge(piece + 1)

    def _edge(self, index: Tensor) -> Tensor:
        edges = self._edges.expand(index.shape[0], -1)
        return edges.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def confine(self, field: VectorField, piece: Tensor) -> VectorField:
        """The field within each sample's piece ``(B,)``, continued to both of its ends."""
        if is_autonomous(field):
            return field
        low, high = self.start(piece).detach(), self.end(piece).detach()
        begin, end = torch.maximum(low, self._first), torch.minimum(high, self._last)
        room = (end - begin).clamp(min=0.0)
        begin = torch.maximum(begin, low + _reach(low, room))
        return Confined(field, begin, torch.minimum(end, high - _reach(high, room)))


def _reach(edge: Tensor, room: Tensor) -> Tensor:
    """How far from an edge of a piece its inside begins, ``(B,)``; 0 where there is no edge."""
    reach = torch.where(edge == 0, _INSIDE_AT_ZERO * room, _INSIDE * edge.abs())
    return torch.where(torch.isfinite(edge), torch.minimum(reach, 0.25 * room), 0.0)


class Confined:
    """A field whose times are moved into ``[low, high]`` ``(B,)``, inside of its piece.

    At the ends it takes the limits from inside, whatever it is told to be at the jump itself.
    """

    def __init__(self, field: VectorField, low: Tensor, high: Tensor) -> None:
        self._field, self._low, self._high = field, low, high

    def _inside(self, time: Tensor) -> Tensor:
        known = time.detach()
        moved = torch.minimum(torch.maximum(known, self._low), self._high)
        # The derivative by time goes on through the ends; the difference is zero.
        return moved + (time - known)

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self._field(self._inside(time), state)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._field.jacobian(self._inside(time), state)

    def select(self, index: Tensor) -> "Confined":
        return Confined(self._field.select(index), self._low[index], self._high[index])
