"""The leading eigenvalue of many Jacobians at once, by Arnoldi's method.

Where the rightmost eigenvalues stand apart (they are then the oscillatory mode of the normalization
loop), a Krylov space of a few dozen dimensions holds them to rounding. Where they are the edge of
a cluster of real ones, a Krylov space of the inverse, shifted next to that edge, does. A circuit
whose residuals say otherwise is left to the dense eigensolver.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import equations
from .problem import Problem

__all__ = ["arnoldi_leading_eigenvalues", "shifted_leading_eigenvalues"]

_SEED = 104729
# Distance of the shift from the edge of the spectrum, relative to the edge's real part.
_SHIFT_DISTANCE = 0.05


def arnoldi_leading_eigenvalues(
    problem: Problem, y: Tensor, a: Tensor, dimension: int
) -> tuple[Tensor, Tensor]:
    """Eigenvalues with the largest real part, complex ``(B,)``, and their residuals ``(B,)``.

    The residual of an eigenvalue is that of its unit Ritz vector, infinite where it is unknown.
    ``2n`` must exceed ``dimension``.
    """
    lin = equations.linearize(y, a, problem.recurrent_weight, problem.exponent, problem.rectified)

    def apply(vector: Tensor) -> Tensor:
        p, q = vector.chunk(2, -1)
        inner = p if lin.slope is None else lin.slope * p
        recurrent = equations.matvec(problem.recurrent_weight, inner)
        pool = equations.matvec(problem.normalization_weight, lin.excitation * p + lin.pool * q)
        return torch.cat(
            [
                (lin.gain * recurrent - p - lin.inhibition * q) / problem.tau_y,
                (pool - q) / problem.tau_a,
            ],
            -1,
        )

    hessenberg = _arnoldi(apply, y, dimension)
    square, last = hessenberg[:, :-1], hessenberg[:, -1, -1]
    ritz = torch.linalg.eigvals(square)
    leading = ritz.gather(-1, ritz.real.argmax(-1, keepdim=True)).squeeze(-1)
    # One step of inverse iteration gives the Ritz vector, whose last entry bounds the residual.
    shift = leading * (1.0 + 8.0 * torch.finfo(y.dtype).eps)
    identity = torch.eye(dimension, dtype=ritz.dtype, device=ritz.device)
    shifted = square.to(ritz.dtype) - shift[:, None, None] * identity
    ones = torch.ones(dimension, dtype=ritz.dtype, device=ritz.device).expand(y.shape[0], -1)
    vector, info = torch.linalg.solve_ex(shifted, ones)
    residual = last.abs() * vector[:, -1].abs() / vector.norm(dim=-1)
    known = (info == 0) & torch.isfinite(residual) & torch.isfinite(leading.real)
    return leading, torch.where(known, residual, torch.inf)


def shifted_leading_eigenvalues(
    problem: Problem, y: Tensor, a: Tensor, edge: Tensor, dimension: int, accuracy: float
) -> tuple[Tensor, Tensor]:
    """The eigenvalues with the largest real part among those near the real number ``edge``.

    Args:
        problem: The circuits.
        y: Their states, ``(B, n)``.
        a: The same.
        edge: About the largest real part of an eigenvalue, ``(B,)``.
        dimension: Of the Krylov space, less than ``2n``.
        accuracy: Largest relative residual of an eigenvalue that counts as found.

    Returns:
        The eigenvalues, complex ``(B,)``, and the mask ``(B,)`` of those that were found.
    """
    shift = edge + _SHIFT_DISTANCE * edge.abs()
    identity = torch.eye(2 * y.shape[-1], dtype=y.dtype, device=y.device)
    shifted = problem.jacobian(y, a) - shift[:, None, None] * identity
    factors, pivots, info = torch.linalg.lu_factor_ex(shifted)

    def apply(vector: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.lu_solve(factors, pivots, vector.unsqueeze(-1))
        return solution.squeeze(-1)

    hessenberg = _arnoldi(apply, y, dimension)
    usable = (info == 0) & torch.isfinite(hessenberg).all((-2, -1))
    hessenberg = torch.where(usable[:, None, None], hessenberg, 0.0)
    ritz, vectors = torch.linalg.eig(hessenberg[:, :-1])
    residual = hessenberg[:, -1, -1, None].abs() * vectors[:, -1].abs()
    converged = residual <= accuracy * ritz.abs()
    values = shift.unsqueeze(-1) + 1.0 / torch.where(converged, ritz, 1.0)
    rank = torch.where(converged, values.real, -torch.inf)
    leading = values.gather(-1, rank.argmax(-1, keepdim=True)).squeeze(-1)
    return leading, usable & converged.any(-1)


def _arnoldi(apply: Callable[[Tensor], Tensor], like: Tensor, dimension: int) -> Tensor:
    """Hessenberg matrices ``(B, m + 1, m)`` of an operator on ``(B, 2n)``, ``m = dimension``."""
    size, n = like.shape
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(2 * n, generator=generator, dtype=torch.float64).to(like)
    basis = like.new_zeros(size, dimension + 1, 2 * n)
    hessenberg = like.new_zeros(size, dimension + 1, dimension)
    basis[:, 0] = start / start.norm()
    for step in range(dimension):
        image = apply(basis[:, step])
        known = basis[:, : step + 1]
        # Twice is enough (Kahan and Parlett): the basis stays orthogonal to rounding.
        for _ in range(2):
            overlap = torch.bmm(known, image.unsqueeze(-1))
            image = image - torch.bmm(overlap.mT, known).squeeze(1)
            hessenberg[:, : step + 1, step] += overlap.squeeze(-1)
        length = image.norm(dim=-1)
        hessenberg[:, step + 1, step] = length
        basis[:, step + 1] = image / length.clamp_min(torch.finfo(like.dtype).tiny).unsqueeze(-1)
    return hessenberg
