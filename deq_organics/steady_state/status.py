"""What became of each circuit of a batch, and the record a solver returns."""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Reached", "Solution", "Status"]


class Status(IntEnum):
    """Outcome of the search for a circuit's steady state; ``message`` says it in words.

    What is said of the dynamics is said of one trajectory, from rest or from the start that was
    given, and was checked along it.
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    UNSTABLE = 2
    NOT_SETTLED = 3
    DIVERGED = 4
    CYCLE = 5
    NOT_REPRESENTABLE = 6
    UNDECIDED = 7

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "a steady state was found",
    Status.MAX_ITERATIONS: "the residual is still above tol after max_iter iterations",
    Status.UNSTABLE: "only an unstable fixed point was found",
    Status.UNDECIDED: "a fixed point was found, but rounding leaves open whether it is stable",
    Status.NOT_SETTLED: "the dynamics did not settle within the time they were followed",
    Status.DIVERGED: "the dynamics diverge",
    Status.CYCLE: "the dynamics end on a stable cycle",
    Status.NOT_REPRESENTABLE: (
        "a steady state exists, but numbers of the circuit's dtype cannot represent it within tol"
    ),
}


class Reached(IntEnum):
    """Whether the circuit itself gets to the state.

    That is, whether its dynamics, from rest or from the start that was given, end there.
    """

    NOT_EXAMINED = -1
    NO = 0
    YES = 1


class Solution(NamedTuple):
    """States ``y`` and ``a`` of shape ``(B, n)`` and, of shape ``(B,)``, how each was reached."""

    y: Tensor
    a: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
    reached: Tensor
    """:class:`Reached`"""
    period: Tensor
    """Of the cycle on which the dynamics end; NaN without one."""
    time: Tensor
    """Until which the dynamics were followed; NaN if they were not."""

    @classmethod
    def unfollowed(
        cls, y: Tensor, a: Tensor, residual: Tensor, iterations: Tensor, status: Tensor
    ) -> "Solution":
        """Of a search that did not follow the dynamics."""
        unknown = torch.full_like(residual, torch.nan)
        reached = torch.full_like(status, int(Reached.NOT_EXAMINED))
        return cls(y, a, residual, iterations, status, reached, unknown, unknown.clone())

    def with_plain_strides(self) -> "Solution":
        """Copies of ``y`` and ``a``: forward mode wants a value's strides and its tangent's alike.

        The tangent's are those of a contiguous tensor.
        """
        y, a = (part.clone(memory_format=torch.contiguous_format) for part in self[:2])
        return self._replace(y=y, a=a)
