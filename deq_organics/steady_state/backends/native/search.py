"""The kernels as a backend: what they solve, and what they leave to torch."""

import torch
from torch import Tensor

from .... import equations
from ....circuit_arguments import check_values
from ....native import native_refusal
from ....problem import Problem
from ....stability.spectrum import is_stable
from ...methods import attainable
from ...status import Solution
from ..base import Adjoint, Work
from ..by_torch import TorchSearch
from ..kernels import adjoint_by, ask_again, refusal_of
from .calls import prepare, solve, solve_adjoint
from .self_check import steady_state_failure

__all__ = ["NativeBackend", "NativeSearch"]


class NativeBackend:
    """Tiles of samples on a CPU, where the kernels can take them and passed their self-check."""

    name = "native"

    def refusal(self, work: Work) -> str | None:
        return refusal_of(work, native_refusal) or steady_state_failure(work.problem)

    def prepare(self, work: Work) -> "NativeSearch":
        return NativeSearch(work)


class NativeSearch:
    """A call for the solve and one for the adjoint; what these leave open goes to torch."""

    def __init__(self, work: Work) -> None:
        self.options = work.options
        self._checked = work.checked
        # What is left open has then been checked.
        self._torch = TorchSearch(work.options, checked=True)
        with torch.no_grad(), equations.full_precision(work.problem.input_drive):
            self._shared = prepare(work.problem.flat())

    def solve(self, problem: Problem, start: tuple[Tensor, Tensor] | None = None) -> Solution:
        assert start is None
        options = self.options
        if not self._checked:
            check_values(problem)
        accepted = attainable(options.tol, problem.input_drive.dtype)
        solution, settled = solve(problem, self._shared, options.tol, accepted, options.max_iter)
        if options.verify_stability and not self._shared.identity:
            settled = is_stable(problem, solution.y, solution.a, settled)
        ask_again(solution, ~settled, lambda left: self._torch.solve(problem.select(left)))
        return solution

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        a: Tensor,
        status: Tensor,
        g_y: Tensor | None,
        g_a: Tensor | None,
    ) -> Adjoint:
        accepted = self.options.accepted_error(y.dtype)
        given = (problem, y, a, status, g_y, g_a)
        return adjoint_by(
            lambda: solve_adjoint(problem, self._shared, *given[1:], accepted), self._torch, *given
        )
