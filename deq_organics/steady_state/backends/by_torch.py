"""Steady states by torch: every solver, circuit, device and transform."""

import torch
from torch import Tensor

from ... import equations
from ...checks import check_finite, is_transformed
from ...circuit_arguments import check_values
from ...problem import Problem
from ..adjoint import (
    adjoint_residual,
    solve_adjoint_dense,
    solve_adjoint_identity,
    solve_adjoint_iteratively,
)
from ..linear_systems import report_unsolved, without
from ..methods import solve
from ..methods.auto import has_identity_recurrence
from ..methods.preconditioner import PreparedOnce
from ..options import SolveOptions
from ..status import Solution, Status
from .base import Adjoint, Work

__all__ = ["TorchBackend", "TorchSearch"]

# The dense adjoint works on this many entries of Jacobians at a time, whatever the batch.
_ENTRIES_AT_A_TIME = 2**19


class TorchBackend:
    """Computes everything, as the last one that is asked."""

    name = "torch"

    def refusal(self, work: Work) -> None:
        return None

    def prepare(self, work: Work) -> "TorchSearch":
        return TorchSearch(work.options, work.checked)


class TorchSearch:
    """A solver's solution; adjoints iteratively, else by dense linear systems."""

    def __init__(self, options: SolveOptions, checked: bool) -> None:
        self.options = options
        self._checked = checked
        self._precondition = PreparedOnce()

    def solve(self, problem: Problem, start: tuple[Tensor, Tensor] | None = None) -> Solution:
        if not self._checked:
            check_values(problem)
        check_finite("input_drive", problem.input_drive)
        check_finite("inhibitory_drive", problem.inhibitory_drive)
        options = self.options
        solution = solve(
            problem,
            options.solver,
            options.tol,
            options.max_iter,
            options.verify_stability,
            start,
            self._precondition,
        )
        return solution.with_plain_strides()

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        a: Tensor,
        status: Tensor,
        g_y: Tensor | None,
        g_a: Tensor | None,
    ) -> Adjoint:
        parts = [torch.zeros_like(y) if part is None else part for part in (g_y, g_a)]
        # What did not converge is no steady state: it has no gradient and must not spoil others'.
        # A cotangent that is not finite gives NaN: it tells of something else, outside.
        unsolved = status != Status.CONVERGED
        g = torch.cat(parts, -1)
        broken = ~(unsolved | torch.isfinite(g).all(-1))
        y, a, g = without(unsolved | broken, y, a, g)
        adjoint = self._solve_adjoint(problem, y, a, g)
        adjoint_y, adjoint_a = torch.where(broken.unsqueeze(-1), torch.nan, adjoint).chunk(2, -1)
        gained = (1.0 - equations.inhibitory_firing_rate(a, problem.exponent)) * adjoint_y
        pooled = equations.normalization_pool(y, a, problem.exponent, problem.rectified)
        return Adjoint(adjoint_y, adjoint_a, gained, pooled, torch.zeros_like(unsolved))

    def _solve_adjoint(self, problem: Problem, y: Tensor, a: Tensor, g: Tensor) -> Tensor:
        """The adjoint of every sample; failures are never silent."""
        accepted = self.options.accepted_error(g.dtype)
        second_order = torch.is_grad_enabled()
        if problem.recurrent_weight is None or (
            not second_order and not is_transformed(g) and has_identity_recurrence(problem)
        ):
            return solve_adjoint_identity(problem, y, a, g)
        if second_order or is_transformed(g):
            # The dense solve has no loop that depends on values, and differentiates.
            adjoint = solve_adjoint_dense(problem, y, a, g)
            error = adjoint_residual(problem, y, a, adjoint, g, direct=True)
            failed = ~(error <= accepted)
            if report_unsolved(failed, self.options):
                adjoint = solve_adjoint_dense(problem, *without(failed, y, a, g))
        else:
            adjoint, error = solve_adjoint_iteratively(
                problem, y, a, g, 0.5 * accepted, self._precondition
            )
            unsolved = (~(error <= accepted)).nonzero().squeeze(-1)
            chunk = max(1, _ENTRIES_AT_A_TIME // g.shape[-1] ** 2)
            for left in unsolved.split(chunk) if unsolved.numel() else ():
                part = problem.select(left)
                dense = solve_adjoint_dense(part, y[left], a[left], g[left])
                adjoint[left] = dense
                error[left] = adjoint_residual(part, y[left], a[left], dense, g[left], direct=True)
            failed = ~(error <= accepted)
            if report_unsolved(failed, self.options):
                adjoint = torch.where(failed.unsqueeze(-1), 0.0, adjoint)
        return adjoint
