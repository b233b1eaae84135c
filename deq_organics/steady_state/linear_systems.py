"""What the linear systems of the derivatives share: circuits left out, and failures told."""

import torch
from torch import Tensor

from ..caller_warnings import warn_caller
from ..checks import physical
from ..errors import AdjointWarning, SteadyStateError
from ..problem import Problem
from .adjoint import tangent_residual
from .options import SolveOptions
from .status import Status

__all__ = ["report_unsolved", "solve_tangent", "without"]


def without(
    left_out: Tensor, y: Tensor, a: Tensor, right_side: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States ``(B, n)`` and a right-hand side, with trivial ones for some circuits.

    With ``y = 0``, ``a = 1`` the Jacobian is ``-I``: these circuits' linear system, and all its
    derivatives, give 0, where that of their own state may give NaN.
    """
    left_out = left_out.unsqueeze(-1)
    return (
        torch.where(left_out, 0.0, y),
        torch.where(left_out, 1.0, a),
        torch.where(left_out, 0.0, right_side),
    )


def solve_tangent(
    problem: Problem, y: Tensor, a: Tensor, status: Tensor, flow: Tensor, options: SolveOptions
) -> Tensor:
    """``-J^-1 flow``, ``(B, 2n)``, for states ``(B, n)``; 0 where a circuit has no steady state."""
    unsolved = status != Status.CONVERGED
    broken = ~(unsolved | torch.isfinite(flow).all(-1))
    y, a, right = without(unsolved | broken, y, a, flow)
    tangent, error = _solve(problem, y, a, right)
    failed = ~(error <= options.accepted_error(flow.dtype))
    if report_unsolved(failed, options):
        tangent, _ = _solve(problem, *without(failed, y, a, right))
    return torch.where(broken.unsqueeze(-1), torch.nan, tangent)


def _solve(problem: Problem, y: Tensor, a: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """``-J^-1 flow``, ``(B, 2n)``, and its relative residual ``(B,)``."""
    jacobian = problem.jacobian(y, a, unit_tau=True)
    tangent = torch.linalg.solve_ex(jacobian, -flow)[0]
    return tangent, tangent_residual(jacobian, tangent, flow)


def report_unsolved(failed: Tensor, options: SolveOptions) -> bool:
    """Warn or raise where a linear system could not be solved; whether there are any."""
    failed = physical(failed)
    count = int(failed.sum())
    if count == 0:
        return False
    message = (
        f"the adjoint equation of {count} of {failed.numel()} circuits could not be solved "
        "(their Jacobian is close to singular)"
    )
    if options.on_failure == "error":
        raise SteadyStateError(message)
    warn_caller(f"{message}; their gradient is left out", AdjointWarning)
    return True
