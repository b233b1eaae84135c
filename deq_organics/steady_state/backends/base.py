"""What a backend of steady states is: it prepares a search, which solves and differentiates."""

from typing import NamedTuple, Protocol

from torch import Tensor

from ... import dispatch
from ...problem import Problem
from ..options import SolveOptions
from ..status import Solution

__all__ = ["Adjoint", "Search", "SteadyStateBackend", "Work"]


class Work(NamedTuple):
    """Circuits to solve, and how."""

    problem: Problem
    """With any leading dimensions, ``input_drive`` having all of them."""
    options: SolveOptions
    follows: bool
    """Whether the dynamics are followed from a start."""
    checked: bool
    """Whether the values of the tensors were checked; if not, a search has to."""


class Adjoint(NamedTuple):
    """Adjoints ``(B, n)`` and, of the same shape, factors of the gradients by the weights."""

    y: Tensor
    a: Tensor
    gained: Tensor
    """``(1 - a+) lambda_y``"""
    pooled: Tensor
    """``drive(y)^m a``, what ``W`` acts on"""
    failed: Tensor
    """``(B,)``: the residual is too large."""


class Search(Protocol):
    """One solve of a batch, and what was prepared for it; later its derivatives ask it again."""

    @property
    def options(self) -> SolveOptions:
        """How it solves."""

    def solve(self, problem: Problem, start: tuple[Tensor, Tensor] | None) -> Solution:
        """The steady states of a flat problem; with a ``start``, where the dynamics end.

        Raises:
            ValueError: A value is none that a circuit can have.
        """

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        a: Tensor,
        status: Tensor,
        g_y: Tensor | None,
        g_a: Tensor | None,
    ) -> Adjoint:
        """The adjoint of ``(g_y, g_a)`` at the states ``(y, a)``, each ``(B, n)``.

        It is 0 where a circuit has no steady state, and where the system cannot be solved, of
        which it warns or, with ``on_failure="error"``, which it raises.
        """


class SteadyStateBackend(dispatch.Backend[Work], Protocol):
    """One way to compute steady states and their adjoints."""

    def prepare(self, work: Work) -> Search:
        """The search that does this work, where :meth:`refusal` has nothing against it."""
