"""The continuous Lyapunov equation, for batches of stable matrices."""

import torch
from torch import Tensor

from ..checks import physical
from ..equations import full_precision

__all__ = ["solve_lyapunov"]

# Each doubling squares the error: 60 bridge any ratio of time constants that a float can tell.
_MOST_DOUBLINGS = 60


def solve_lyapunov(matrix: Tensor, factor: Tensor, eigenvalues: Tensor) -> Tensor:
    """The ``C`` with ``A C + C A^T + L L^T = 0``, symmetric and positive semidefinite.

    Smith's squared method: with ``V = (I - h A)^-1`` the Cayley transform ``V (I + h A)`` has all
    eigenvalues in the unit circle, and ``C = X + S X S^T + S^2 X S^2^T + ...``, whose number of
    terms doubles with each step. It takes ``O(k^3)`` operations per step and some 10 to 20 steps,
    more the stiffer ``A`` is; all of it differentiates.

    Args:
        matrix: Stable ``A``, ``(..., k, k)``.
        factor: ``L``, ``(..., k, j)``, of leading dimensions that broadcast with ``matrix``'s.
        eigenvalues: Those of ``A``, complex ``(..., k)``. They set the scale ``h``, which the
            solution does not depend on.
    """
    size = eigenvalues.detach().abs()
    # The geometric mean of the slowest and the fastest rate treats both ends alike.
    rate = (size.amin(-1) * size.amax(-1)).sqrt().to(matrix.dtype)
    scaled = matrix / rate[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    with full_precision(matrix):
        step = torch.linalg.solve(identity - scaled, identity + scaled)
        kick = torch.linalg.inv(identity - scaled) @ factor
        total = 2.0 * kick @ kick.mT / rate[..., None, None]
        for _ in range(_MOST_DOUBLINGS):
            more = step @ total @ step.mT
            total = total + more
            step = step @ step
            # The terms left out are of the order of the square of the last ones, also in their
            # derivatives.
            change, value = (physical(t).diagonal(dim1=-2, dim2=-1) for t in (more, total))
            if bool((change <= torch.finfo(matrix.dtype).eps * value).all()):
                break
    return total
