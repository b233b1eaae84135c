"""What became of each circuit of a batch, and the record a solver returns."""

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

__all__ = ["Solution", "Status"]


class Status(IntEnum):
    """Outcome of the search for a circuit's steady state; ``message`` says it in words."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    UNSTABLE = 2
    NOT_SETTLED = 3
    DIVERGED = 4

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "a steady state was found",
    Status.MAX_ITERATIONS: "the residual is still above tol after max_iter iterations",
    Status.UNSTABLE: "only an unstable fixed point was found",
    Status.NOT_SETTLED: "the dynamics stay bounded but do not settle (an oscillation)",
    Status.DIVERGED: "the dynamics diverge",
}


class Solution(NamedTuple):
    """States ``y`` and ``a`` of shape ``(B, n)`` and, of shape ``(B,)``, how each was reached."""

    y: Tensor
    a: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
