"""The kernels as a backend: what they solve, and what they leave to torch."""

import torch
from torch import Tensor

from ....checks import is_transformed, refuse_transforms
from ....circuit_arguments import check_values
from ....native import native_refusal
from ....problem import Problem
from ....stability.spectrum import is_stable
from ...methods import attainable
from ...status import Solution
from ..base import Adjoint, Work
from ..by_torch import TorchSearch
from .calls import Shared, prepare, solve, solve_adjoint
from .self_check import steady_state_failure

__all__ = ["NativeBackend", "NativeSearch"]


class NativeBackend:
    """Tiles of samples on a CPU, where the kernels can take them and passed their self-check."""

    name = "native"

    def refusal(self, work: Work) -> str | None:
        return _refusal(work) or steady_state_failure(work.problem)

    def prepare(self, work: Work) -> "NativeSearch":
        return NativeSearch(work)


class NativeSearch:
    """A call for the solve and one for the adjoint; what these leave open goes to torch."""

    def __init__(self, work: Work) -> None:
        self.options = work.options
        self._checked = work.checked
        # What is left open has then been checked.
        self._torch = TorchSearch(work.options, checked=True)
        self._shared: Shared | None = None

    def solve(self, problem: Problem, start: tuple[Tensor, Tensor] | None = None) -> Solution:
        assert start is None
        options = self.options
        if not self._checked:
            check_values(problem)
        self._shared = shared = prepare(problem)
        accepted = attainable(options.tol, problem.input_drive.dtype)
        solution, settled = solve(problem, shared, options.tol, accepted, options.max_iter)
        if options.verify_stability and not shared.identity:
            settled = is_stable(problem, solution.y, solution.a, settled)
        if not settled.all():
            left = (~settled).nonzero().squeeze(-1)
            again = self._torch.solve(problem.select(left))
            for part, new in zip(solution, again, strict=True):
                part[left] = new
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
        if (
            self._shared is None
            or torch.is_grad_enabled()
            or any(part is not None and is_transformed(part) for part in (g_y, g_a))
        ):
            return self._torch.adjoint(problem, y, a, status, g_y, g_a)
        accepted = self.options.accepted_error(y.dtype)
        adjoint = solve_adjoint(problem, self._shared, y, a, status, g_y, g_a, accepted)
        if adjoint.failed.any():
            left = adjoint.failed.nonzero().squeeze(-1)
            grads = [None if part is None else part[left] for part in (g_y, g_a)]
            again = self._torch.adjoint(
                problem.select(left), y[left], a[left], status[left], grads[0], grads[1]
            )
            for part, new in zip(adjoint, again, strict=True):
                part[left] = new
        return adjoint


def _refusal(work: Work) -> str | None:
    """Why the kernels cannot solve such circuits, as part of a sentence; None if they can."""
    problem = work.problem
    drive, wr, w = problem.input_drive, problem.recurrent_weight, problem.normalization_weight
    if work.follows:
        return "following the dynamics from a start"
    if (refusal := native_refusal(drive.device)) is not None:
        return refusal
    if work.options.solver != "auto":
        return f"the solver {work.options.solver!r}, only 'auto'"
    if wr is None:
        return "circuits without recurrent weights: they have a closed form"
    if (transforms := refuse_transforms(problem.tensors())) is not None:
        return transforms
    if any(size != 1 for weight in (wr, w) for size in weight.shape[:-2]):
        return "weights of each circuit's own, only weights that all circuits share"
    if problem.exponent != 2.0:
        return f"the exponent {problem.exponent:g}, only 2"
    if drive.dtype != torch.float32:
        return f"{drive.dtype}, only float32"
    if drive.numel() == 0:
        return "an empty batch"
    return None
