"""How to search for a steady state: the options of a solve, validated."""

from typing import NamedTuple

import torch

from ..checks import check_bool, check_choice, check_number, check_positive_int
from .methods import DEFAULT_MAX_ITER, MAX_STEPS, SOLVERS

__all__ = ["ON_FAILURE", "SolveOptions"]

ON_FAILURE = ("error", "warn", "ignore")


class SolveOptions(NamedTuple):
    """The options that `Circuit.steady_state` describes."""

    solver: str
    tol: float
    max_iter: int
    on_failure: str
    verify_stability: bool

    @classmethod
    def checked(
        cls,
        solver: str,
        tol: float,
        max_iter: int | None,
        on_failure: str,
        verify_stability: bool,
        dtype: torch.dtype | None = None,
        *,
        follows: bool = False,
    ) -> "SolveOptions":
        """From a user's arguments; ``max_iter`` None is the solver's default.

        ``follows`` tells whether the solver follows the dynamics from a start.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A value is not possible, or ``tol`` is too small for the ``dtype``.
        """
        check_choice("solver", solver, SOLVERS)
        check_choice("on_failure", on_failure, ON_FAILURE)
        tol = check_number("tol", tol, low=0.0, high=1.0, open_low=True)
        if dtype is not None and tol < (smallest := 4.0 * torch.finfo(dtype).eps):
            raise ValueError(
                f"tol: got {tol:g}, expected at least {smallest:.2g}, the smallest residual that "
                f"{dtype} can reach; use float64 for a smaller one"
            )
        if max_iter is None:
            steps = MAX_STEPS if follows else DEFAULT_MAX_ITER[solver]
        else:
            steps = check_positive_int("max_iter", max_iter)
        return cls(solver, tol, steps, on_failure, check_bool("verify_stability", verify_stability))

    def accepted_error(self, dtype: torch.dtype) -> float:
        """Relative residual of a linear system of the derivatives that counts as solved."""
        return max(self.tol, 512.0 * torch.finfo(dtype).eps)
