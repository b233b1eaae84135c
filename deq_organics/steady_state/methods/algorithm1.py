"""The paper's Algorithm 1, to the letter."""

import torch

from ... import equations
from ...problem import Problem
from ..status import Solution, Status

__all__ = ["solve_algorithm1"]


def solve_algorithm1(problem: Problem, tol: float, max_iter: int) -> Solution:
    """Alternate ``y <- solve (I - D(1 - a+) Wr) y = d`` and ``a <- c + W (|y|^m a)``.

    In the rectified model the columns of silent neurons drop out of the matrix (``Wr relu(y)``).
    A circuit stops when its relative residual is at most ``tol``; the paper's iteration has no
    test of its own and no guarantee to get there.
    """
    d, c, m = problem.input_drive, problem.inhibitory_drive, problem.exponent
    wr, w = problem.recurrent_matrix(), problem.normalization_weight
    identity = torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
    bound = torch.linalg.matrix_norm(wr, 2).unsqueeze(-1)

    recurrent = equations.drive(equations.matvec(wr, d), problem.rectified)
    root = equations.inhibitory_firing_rate(c, m)
    start = (bound - bound**2 + bound**2 * root).abs()
    a = c + equations.matvec(w, c / equations.power(start, m) * equations.power(recurrent, m))
    root = equations.inhibitory_firing_rate(a, m)
    y = recurrent / (bound - bound**2 + bound**2 * root)

    error = problem.relative_residual(y, a)
    steps = torch.zeros_like(error, dtype=torch.int64)
    for _ in range(max_iter):
        going = ~(error <= tol) & torch.isfinite(error)
        if not going.any():
            break
        gain = 1.0 - equations.inhibitory_firing_rate(a, m)
        columns = wr * (y > 0).to(y.dtype).unsqueeze(-2) if problem.rectified else wr
        y_new, _ = torch.linalg.solve_ex(identity - gain.unsqueeze(-1) * columns, d)
        a_new = c + equations.matvec(
            w, equations.normalization_pool(y_new, a, m, problem.rectified)
        )
        y = torch.where(going.unsqueeze(-1), y_new, y)
        a = torch.where(going.unsqueeze(-1), a_new, a)
        error = torch.where(going, problem.relative_residual(y, a), error)
        steps = steps + going
    status = torch.where(error <= tol, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    return Solution.unfollowed(y, a, error, steps, status)
