"""What a noise is for given circuits: independent sources, and how each enters the equations."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..checks import check_broadcast, check_finite, check_positive, physical
from ..circuit import Circuit
from .arguments import check_leading, like_circuit
from .noise import Noise

__all__ = ["Source", "amplitudes", "joint_factor", "rate_roots", "sources_of"]


class Source(NamedTuple):
    """The sources of one noise, in double precision."""

    factor: Tensor
    """What each adds to ``(dy/dt, da/dt)``, ``(..., 2n, k)``, before any rate."""
    tau: Tensor | None
    """Correlation times of Ornstein-Uhlenbeck noise, ``(..., k)``."""
    density: Callable[[Tensor], Tensor] | Tensor | None
    multiplicative: bool
    name: str
    """That of the argument, for messages."""


def sources_of(circuit: Circuit, noises: Sequence[Noise]) -> list[Source]:
    """The sources of every noise; raises for shapes that do not go with the circuits."""
    found = []
    for index, noise in enumerate(noises):
        name = "noise" if len(noises) == 1 else f"noise[{index}]"
        factor = _factor(circuit, noise, name)
        tau = None
        if noise.tau is not None:
            tau = _tau(circuit, noise.tau, factor.shape[-1], f"{name}.tau")
        density: Any = noise.density
        if density is not None and not callable(density):
            density = like_circuit(f"{name}.density", density, circuit)
        found.append(Source(factor, tau, density, noise.multiplicative, name))
    return found


def _factor(circuit: Circuit, noise: Noise, name: str) -> Tensor:
    """``(..., 2n, k)``, all but the rates."""
    n, rows = circuit.n, 2 * circuit.n if noise.on == "state" else circuit.n
    options: Any = {"dtype": torch.float64, "device": circuit.input_drive.device}
    if noise.factor is not None:
        factor = _matrix(circuit, noise.factor, rows, None, f"{name}.factor", noise.on)
        check_finite(f"{name}.factor", factor)
    elif noise.covariance is not None:
        given = _matrix(circuit, noise.covariance, rows, rows, f"{name}.covariance", noise.on)
        factor = _root(given, f"{name}.covariance")
    else:
        factor = torch.ones(rows, 1, **options) if noise.shared else torch.eye(rows, **options)
    strength = noise.strength
    if isinstance(strength, int | float):
        factor = float(strength) * factor
    else:
        given = like_circuit(f"{name}.strength", strength, circuit)
        expected = f"a number, ({rows},) or (..., {rows}) for on={noise.on!r}"
        check_broadcast(f"{name}.strength", given.shape[-1:], (rows,), expected)
        check_leading(f"{name}.strength", given, circuit.batch_shape)
        check_positive(f"{name}.strength", given, allow_zero=True)
        factor = (given.unsqueeze(-1) if given.ndim else given).double() * factor
    if noise.on == "input_drive":
        factor = factor / circuit.tau_y.double().unsqueeze(-1)
    above = n if noise.on == "a" else 0
    return torch.nn.functional.pad(factor, (0, 0, above, 2 * n - rows - above))


def _matrix(
    circuit: Circuit, value: Any, rows: int, columns: int | None, name: str, on: str
) -> Tensor:
    matrix = like_circuit(name, value, circuit)
    last = "k" if columns is None else columns
    shape = tuple(matrix.shape)
    fits = matrix.ndim >= 2 and shape[-2] == rows and shape[-1] >= 1
    if not fits or columns not in (None, shape[-1]):
        raise ValueError(
            f"{name}: got shape {shape}, expected ({rows}, {last}) or (..., {rows}, {last}) for "
            f"on={on!r}"
        )
    check_leading(name, matrix, circuit.batch_shape, core=2)
    return matrix.double()


def _root(covariance: Tensor, name: str) -> Tensor:
    """``L`` with ``L L^T = Q``, in units in which all variances are 1."""
    check_finite(name, covariance)
    known = physical(covariance)
    scale = known.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    unit = known / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    # That of numbers in single precision: a covariance estimated in it is good to so much.
    slack = known.shape[-1] * torch.finfo(torch.float32).eps
    skewed = (unit - unit.mT).abs().max()
    if skewed > slack:
        raise ValueError(
            f"{name}: got a matrix that differs from its transpose by {float(skewed):.3g} in "
            "units of the standard deviations, expected a symmetric one"
        )
    smallest = float(torch.linalg.eigvalsh(0.5 * (unit + unit.mT)).min())
    if smallest < -slack:
        raise ValueError(
            f"{name}: got a smallest eigenvalue of {smallest:.3g} in units of the variances, "
            "expected a positive semidefinite matrix"
        )
    symmetric = 0.5 * (covariance + covariance.mT)
    symmetric = symmetric / scale.unsqueeze(-1) / scale.unsqueeze(-2)
    if smallest > slack:
        return scale.unsqueeze(-1) * torch.linalg.cholesky(symmetric)
    if covariance.requires_grad:
        raise ValueError(
            f"{name}: got a singular matrix that requires a gradient, expected a positive definite "
            "one, or its factor by the argument factor"
        )
    values, vectors = torch.linalg.eigh(symmetric)
    return scale.unsqueeze(-1) * vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def _tau(circuit: Circuit, tau: Any, sources: int, name: str) -> Tensor:
    if isinstance(tau, int | float):
        device = circuit.input_drive.device
        return torch.full((sources,), float(tau), dtype=torch.float64, device=device)
    given = like_circuit(name, tau, circuit)
    expected = f"a number, ({sources},) or (..., {sources}), one for each source"
    check_broadcast(name, given.shape[-1:], (sources,), expected)
    check_leading(name, given, circuit.batch_shape)
    check_positive(name, given)
    return given.double().expand(*given.shape[:-1], sources)


def rate_roots(y: Tensor, a: Tensor, exponent: float | Tensor, rectified: bool) -> Tensor:
    """Square roots of the firing rates of both populations, ``(..., 2n)``."""
    rates_y = equations.power(equations.drive(y, rectified), 0.5 * exponent)
    return torch.cat([rates_y, equations.inhibitory_firing_rate(a, 2.0 * exponent)], -1)


def joint_factor(
    circuit: Circuit, sources: Sequence[Source], y: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """All sources' factor at a state, in units of its largest entry, ``(..., 2n, K)``, and that.

    Args:
        circuit: The circuits.
        sources: Of every noise.
        y: The state ``(..., n)``, double, which the rates of multiplicative noise are taken at.
        a: See there.
    """
    parts = []
    for source in sources:
        part = source.factor
        if source.multiplicative:
            roots = rate_roots(y, a, circuit.exponent, circuit.rectified)
            part = roots.unsqueeze(-1) * part
        parts.append(part)
    lead = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    factor = torch.cat([part.expand(*lead, *part.shape[-2:]) for part in parts], -1)
    largest = factor.detach().abs().flatten(-2).amax(-1)[..., None, None]
    largest = torch.where(largest > 0, largest, 1.0)
    return factor / largest, largest


def amplitudes(sources: Sequence[Source], frequency: Tensor) -> Tensor | None:
    """Roots of the sources' two-sided densities, ``(..., F, K)``; None where all are white."""
    if all(source.tau is None and source.density is None for source in sources):
        return None
    parts = [_density(source, frequency) for source in sources]
    lead = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    joint = torch.cat([part.expand(*lead, *part.shape[-2:]) for part in parts], -1)
    some = joint > 0
    # The root of 0 has an infinite derivative, which would enter as NaN.
    return torch.where(some, torch.where(some, joint, 1.0).sqrt(), 0.0)


def _density(source: Source, frequency: Tensor) -> Tensor:
    """``(..., F, k)`` in double precision."""
    count = source.factor.shape[-1]
    if source.tau is not None:
        tau = source.tau.unsqueeze(-2)
        phase = 2.0 * math.pi * frequency.double().unsqueeze(-1) * tau
        return 2.0 * tau / (1.0 + phase.square())
    if source.density is None:
        return torch.ones(frequency.numel(), count, dtype=torch.float64, device=frequency.device)
    name, values = f"{source.name}.density", source.density
    if not isinstance(values, Tensor):
        name += ": the function's value"
        values = values(frequency.abs())
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"{name}: got {kind}, expected a floating-point tensor")
    values = values.unsqueeze(-1) if values.ndim == 1 else values
    shape, size = tuple(values.shape), frequency.numel()
    if values.ndim < 2 or shape[-2] != size or shape[-1] not in (1, count):
        raise ValueError(
            f"{name}: got shape {tuple(values.squeeze(-1).shape)}, expected ({size},), one for "
            f"each frequency, or ({size}, {count}) or (..., {size}, {count}), one for each source"
        )
    check_positive(name, values, allow_zero=True)
    return values.double().expand(*shape[:-1], count)
