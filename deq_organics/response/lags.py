"""How noisy circuits remember: their covariances over time, around their working points."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..circuit import Circuit
from .coloured import with_sources
from .lyapunov import solve_lyapunov
from .noise_sources import Source, joint_factor
from .working_point import WorkingPoint

__all__ = ["lagged_covariances"]


def lagged_covariances(
    circuit: Circuit, sources: Sequence[Source], point: WorkingPoint, step: float
) -> Iterator[Tensor]:
    """``E[x(t + k step) x(t)^T]`` for ``k = 0, 1, ...``, each ``(..., 2n, 2n)``, without end.

    ``x`` is the deviation of ``(y, a)`` from the steady state. The sources are white or
    Ornstein-Uhlenbeck noise.
    """
    white = [source for source in sources if source.tau is None]
    coloured = [source for source in sources if source.tau is not None]
    size = point.jacobian.shape[-1]
    parts = []
    if white:
        factor, unit = joint_factor(circuit, white, point.y, point.a)
        covariance = solve_lyapunov(point.jacobian, factor, point.eigenvalues)
        parts.append((torch.linalg.matrix_exp(step * point.jacobian), covariance, unit))
    if coloured:
        matrix, factor, eigenvalues, unit = with_sources(circuit, coloured, point)
        covariance = solve_lyapunov(matrix, factor, eigenvalues)[..., :size]
        parts.append((torch.linalg.matrix_exp(step * matrix), covariance, unit))
    while True:
        yield sum(unit * (unit * now[..., :size, :]) for _, now, unit in parts)  # type: ignore[misc]
        parts = [(move, move @ now, unit) for move, now, unit in parts]
