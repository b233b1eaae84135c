"""The kernels as a backend: what they solve, and what they leave to torch."""

import torch
from torch import Tensor

from .... import equations
from ....circuit_arguments import check_values
from ....problem import Problem
from ....triton_support import kernel_refusal
from ...methods import attainable
from ...status import Solution
from ..base import Adjoint, Work
from ..by_torch import TorchSearch
from ..kernels import adjoint_by, ask_again, refusal_of
from .launch import LARGEST_SIZE, prepare, solve, solve_adjoint
from .self_check import steady_state_failure

__all__ = ["TritonBackend", "TritonSearch"]


class TritonBackend:
    """One program per circuit, where the kernels can take it and passed their self-check."""

    name = "cuda"

    def refusal(self, work: Work) -> str | None:
        if (refusal := refusal_of(work, kernel_refusal, LARGEST_SIZE)) is not None:
            return refusal
        problem = work.problem
        differentiated = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in problem.tensors()
        )
        return steady_state_failure(problem.input_drive, problem.rectified, differentiated)

    def prepare(self, work: Work) -> "TritonSearch":
        return TritonSearch(work)


class TritonSearch:
    """A launch for the solve and one for the adjoint; what these leave open goes to torch."""

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
        solution, settled = solve(
            problem,
            self._shared,
            options.tol,
            attainable(options.tol, problem.input_drive.dtype),
            options.max_iter,
            options.verify_stability,
        )

        def again(left: Tensor) -> Solution:
            if not self._checked:
                check_values(problem)
            return self._torch.solve(problem.select(left))

        ask_again(solution, ~settled, again)
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
