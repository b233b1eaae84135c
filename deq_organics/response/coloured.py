"""The covariance that noise of any colour gives circuits, around their working points."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import physical
from ..circuit import Circuit
from ..memory import check_memory
from .lyapunov import solve_lyapunov
from .noise_sources import Source, amplitudes, joint_factor
from .working_point import WorkingPoint

__all__ = ["coloured_covariance", "refuse_samples", "respond", "with_sources"]

# An integral has converged when twice as many points change it by less, twice in a row.
_TOLERANCE = 1e-8
_FEWEST, _MOST = 2**8, 2**16
# Complex numbers that a part of an integral holds at once.
_AT_A_TIME = 2**22


def refuse_samples(given: Any) -> None:
    """Raise ValueError for densities that are known at some frequencies alone."""
    for source in given if isinstance(given, list) else ():
        if isinstance(source.density, Tensor):
            raise ValueError(
                f"{source.name}.density: got a tensor, whose frequencies are not known, expected a "
                "function of the frequency"
            )


def coloured_covariance(circuit: Circuit, sources: Sequence[Source], point: WorkingPoint) -> Tensor:
    """``C`` of all sources, which are independent, ``(..., 2n, 2n)``."""
    white = [source for source in sources if source.tau is None and source.density is None]
    coloured = [source for source in sources if source.tau is not None]
    other = [source for source in sources if source.density is not None]
    total = torch.zeros_like(point.jacobian)
    if white:
        factor, size = joint_factor(circuit, white, point.y, point.a)
        covariance = solve_lyapunov(point.jacobian, factor, point.eigenvalues)
        total = total + size * (size * covariance)
    if coloured:
        n = point.jacobian.shape[-1]
        matrix, factor, eigenvalues, size = with_sources(circuit, coloured, point)
        shape = (*matrix.shape[:-2], matrix.shape[-1], matrix.shape[-1])
        check_memory("stationary_covariance: with sources", shape, matrix.dtype, matrix.device, 9)
        covariance = solve_lyapunov(matrix, factor, eigenvalues)[..., :n, :n]
        total = total + size * (size * covariance)
    for source in other:
        total = total + _integral(circuit, source, point)
    return total


def with_sources(
    circuit: Circuit, sources: Sequence[Source], point: WorkingPoint
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Circuits and their Ornstein-Uhlenbeck sources ``xi`` as one system under white noise.

    Its state is ``(y, a)`` in units of ``size``, and ``xi``.

    Returns:
        The matrix ``[[J, L], [0, -D(1/tau)]]``, ``(..., 2n + K, 2n + K)``, the factor of the white
        noise, ``(..., 2n + K, K)``, the eigenvalues of the matrix, and ``size``, ``(..., 1, 1)``.
    """
    factor, size = joint_factor(circuit, sources, point.y, point.a)
    lead = point.jacobian.shape[:-2]
    factor = factor.expand(*lead, *factor.shape[-2:])
    taus = [source.tau for source in sources if source.tau is not None]
    tau = torch.cat([part.expand(*lead, part.shape[-1]) for part in taus], -1)
    above = torch.cat([point.jacobian, factor], -1)
    decay = torch.nn.functional.pad(torch.diag_embed(-1.0 / tau), (above.shape[-2], 0))
    matrix = torch.cat([above, decay], -2)
    kick = torch.nn.functional.pad(torch.diag_embed((2.0 / tau).sqrt()), (0, 0, above.shape[-2], 0))
    slow = (-1.0 / tau).detach().to(point.eigenvalues.dtype)
    return matrix, kick, torch.cat([point.eigenvalues, slow], -1), size


def _integral(circuit: Circuit, source: Source, point: WorkingPoint) -> Tensor:
    """The density's integral over all frequencies, by the midpoint rule for ``f = c tan(t)``."""
    factor, size = joint_factor(circuit, [source], point.y, point.a)
    rates = point.eigenvalues.abs()
    middle = (rates.amin(-1) * rates.amax(-1)).sqrt()
    unit = float(physical(middle).double().log().mean().exp()) / (2.0 * math.pi)
    before, agreed, points = None, 0, _FEWEST
    while points <= _MOST:
        total = _sum(circuit, source, point, factor, unit, points)
        if before is not None:
            spread = physical(total).diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
            change = (physical(total) - physical(before)).abs()
            small = _TOLERANCE * spread.unsqueeze(-1) * spread.unsqueeze(-2)
            agreed = agreed + 1 if bool((change <= small).all()) else 0
            if agreed == 2:
                return size * (size * total)
        before, points = total, 2 * points
    raise RuntimeError(
        f"{source.name}.density: the integral over all frequencies does not converge with {_MOST} "
        "points: the density jumps, has a narrow peak, or grows with the frequency"
    )


def _sum(
    circuit: Circuit, source: Source, point: WorkingPoint, factor: Tensor, unit: float, points: int
) -> Tensor:
    angle = (torch.arange(points, dtype=torch.float64, device=factor.device) + 0.5) / points
    angle = 0.5 * math.pi * angle
    frequency, weight = unit * angle.tan(), unit * math.pi / points / angle.cos().square()
    drive = circuit.input_drive
    size = point.jacobian.shape[-1] * point.jacobian[..., 0].numel()
    together = max(1, _AT_A_TIME // size)
    total = torch.zeros_like(point.jacobian)
    for part, share in zip(frequency.split(together), weight.split(together), strict=True):
        response = respond(point.jacobian, part, factor)
        colours = amplitudes([source], part.to(drive.dtype))
        assert colours is not None
        response = response * (colours * share.sqrt().unsqueeze(-1)).unsqueeze(-2)
        total = total + (response.conj() @ response.mT).real.sum(-3)
    return total


def respond(jacobian: Tensor, frequency: Tensor, factor: Tensor) -> Tensor:
    """``(2 pi i f I - J)^-1 L``, complex ``(..., F, 2n, k)``, for ``L`` of ``(..., 2n, k)``."""
    identity = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    rotation = torch.complex(torch.zeros_like(frequency), 2.0 * math.pi * frequency)
    matrix = rotation[:, None, None] * identity - jacobian.unsqueeze(-3)
    # In full, since torch would take a right side of some shapes for a batch of vectors.
    batch = torch.broadcast_shapes(matrix.shape[:-2], (*factor.shape[:-2], 1))
    right = factor.unsqueeze(-3).to(matrix.dtype).expand(*batch, *factor.shape[-2:])
    return torch.linalg.solve(matrix, right)
