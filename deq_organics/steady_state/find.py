"""The owner of a solve: from a problem and options to the record of its steady states."""

import torch
from torch import Tensor

from .. import equations
from ..checks import physical
from ..problem import Problem
from .backends import BACKENDS, Work
from .function import steady_state_function
from .options import SolveOptions
from .record import SteadyState, report_failures
from .status import Status

__all__ = ["find"]


def find(
    problem: Problem,
    options: SolveOptions,
    backend: str,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    checked: bool,
) -> SteadyState:
    """Solve, differentiably; failures are raised, told and marked as ``on_failure`` says.

    Args:
        problem: Circuits with any leading dimensions, ``input_drive`` having all of them.
        options: How to solve.
        backend: ``"auto"`` or the name of one.
        start: ``(y, a)`` that broadcast with ``input_drive``, if the dynamics are to be followed.
        checked: Whether the values of the tensors were checked.

    Raises:
        RuntimeError: The named backend does not apply.
        ValueError: A value, not checked before, is none that a circuit can have.
        SteadyStateError: A circuit was not solved, with ``on_failure="error"``.
    """
    if start is not None:
        shape = torch.broadcast_shapes(problem.input_drive.shape, *(part.shape for part in start))
        problem = problem._replace(input_drive=problem.input_drive.expand(shape))
    work = Work(problem, options, follows=start is not None, checked=checked)
    search = BACKENDS.choose(backend, work).backend.prepare(work)
    solution = steady_state_function(search, problem, start)
    y, a, residual, iterations, status, reached, period, time = solution
    converged = status == Status.CONVERGED
    # Before NaN is put in, so that none flows back.
    rates = equations.firing_rate(y, problem.exponent)
    if options.on_failure != "ignore" and not physical(converged).all():
        report_failures(status, options.on_failure, period, time)
        y, a, rates = (
            torch.where(converged.unsqueeze(-1), part, torch.nan) for part in (y, a, rates)
        )
    return SteadyState(y, a, rates, converged, residual, iterations, status, reached, period, time)
