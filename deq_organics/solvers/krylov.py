"""The leading eigenvalue of many Jacobians at once, by Arnoldi's method.

The rightmost eigenvalues of these Jacobians stand apart (they are the oscillatory mode of the
normalization loop), so that a Krylov space of a few dozen dimensions holds them to rounding. A
circuit whose residual says otherwise is left to the dense eigensolver.
"""

import torch
from torch import Tensor

from .. import equations
from .problem import Problem

__all__ = ["arnoldi_leading_eigenvalues"]

_SEED = 104729


def arnoldi_leading_eigenvalues(
    problem: Problem, y: Tensor, a: Tensor, dimension: int
) -> tuple[Tensor, Tensor]:
    """Eigenvalues with the largest real part, complex ``(B,)``, and their residuals ``(B,)``.

    The residual of an eigenvalue is that of its unit Ritz vector, infinite where it is unknown.
    ``2n`` must exceed ``dimension``.
    """
    hessenberg = _arnoldi(problem, y, a, dimension)
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


def _arnoldi(problem: Problem, y: Tensor, a: Tensor, dimension: int) -> Tensor:
    """Hessenberg matrices ``(B, m + 1, m)`` of the Jacobians, ``m = dimension``."""
    lin = equations.linearize(y, a, problem.recurrent_weight, problem.exponent, problem.rectified)
    size, n = y.shape
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(2 * n, generator=generator, dtype=torch.float64).to(y)
    basis = y.new_zeros(size, dimension + 1, 2 * n)
    hessenberg = y.new_zeros(size, dimension + 1, dimension)
    basis[:, 0] = start / start.norm()
    for step in range(dimension):
        p, q = basis[:, step].chunk(2, -1)
        inner = p if lin.slope is None else lin.slope * p
        recurrent = equations.matvec(problem.recurrent_weight, inner)
        pool = equations.matvec(problem.normalization_weight, lin.excitation * p + lin.pool * q)
        image = torch.cat(
            [
                (lin.gain * recurrent - p - lin.inhibition * q) / problem.tau_y,
                (pool - q) / problem.tau_a,
            ],
            -1,
        )
        known = basis[:, : step + 1]
        # Twice is enough (Kahan and Parlett): the basis stays orthogonal to rounding.
        for _ in range(2):
            overlap = torch.bmm(known, image.unsqueeze(-1))
            image = image - torch.bmm(overlap.mT, known).squeeze(1)
            hessenberg[:, : step + 1, step] += overlap.squeeze(-1)
        length = image.norm(dim=-1)
        hessenberg[:, step + 1, step] = length
        basis[:, step + 1] = image / length.clamp_min(torch.finfo(y.dtype).tiny).unsqueeze(-1)
    return hessenberg
