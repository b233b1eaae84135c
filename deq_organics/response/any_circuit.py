"""Simulation and linear response of circuits of any kind, from their equations alone."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    as_float_tensor,
    check_broadcast,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
    physical,
)
from ..circuits.protocol import DynamicalCircuit
from ..circuits.stability import jacobian_at
from ..circuits.steady_state import JointSteadyState, state_of
from ..circuits.system import System
from ..errors import SteadyStateWarning
from ..integration import METHODS, Pieces, StepControl
from ..memory import check_memory
from ..steady_state.options import ON_FAILURE
from .arguments import as_tensor_or_array
from .failures import report_failures
from .lyapunov import solve_lyapunov
from .running import run
from .spectral_density import CrossSpectrum

__all__ = [
    "JointSpectrum",
    "JointTrajectory",
    "joint_covariance",
    "joint_spectrum",
    "refuse_arguments",
    "trajectory",
]

NoiseByPart = Mapping[str, Tensor | float] | float


@dataclass(frozen=True)
class JointTrajectory:
    """Trajectories of circuits of any kind: ``found["y"]`` is a part, ``(T, ..., n_k)``."""

    t: Tensor
    """Times, ``(T,)``."""
    states: Tensor
    """All parts side by side, ``(T, ..., N)``; NaN from where a circuit did not get."""
    names: tuple[str, ...]
    """Of the parts, in order."""
    sizes: tuple[int, ...]
    """Of the parts."""
    reached: Tensor
    """The last time that each circuit reached, ``(...)``, float64."""

    def __getitem__(self, name: str) -> Tensor:
        """The part of that name, ``(T, ..., n_k)``."""
        return _part(self.states, name, self.names, self.sizes, -1)

    def __iter__(self) -> Any:
        """The parts, in order."""
        return iter(self.states.split(self.sizes, -1))


@dataclass(frozen=True)
class JointSpectrum(CrossSpectrum):
    """Cross-spectral densities of circuits of any kind, ``(..., F, N, N)``."""

    names: tuple[str, ...] = ()
    """Of the parts, in order."""
    sizes: tuple[int, ...] = ()
    """Of the parts."""

    def power_of(self, name: str) -> Tensor:
        """Power spectral densities of a part, ``(..., F, n_k)``."""
        return _part(self.power, name, self.names, self.sizes, -1)

    def coherence_between(self, one: str, other: str) -> Tensor:
        """Magnitude-squared coherence of two parts' components, ``(..., F, n_k, n_l)``."""
        rows = _part(self.coherence(), one, self.names, self.sizes, -2)
        return _part(rows, other, self.names, self.sizes, -1)

    def __str__(self) -> str:
        known = ~physical(self.power).isnan().any(-1).any(-1)
        frequency = physical(self.frequency)
        return (
            f"JointSpectrum of {known.numel()} circuits ({', '.join(self.names)}), "
            f"{self.sided}-sided, at {frequency.numel()} frequencies from "
            f"{frequency.min():.4g} to {frequency.max():.4g}: "
            f"{int(known.sum())} with a stable steady state"
        )


def _part(
    values: Tensor, name: str, names: tuple[str, ...], sizes: tuple[int, ...], dim: int
) -> Tensor:
    if name not in names:
        raise KeyError(f"{name!r}: expected one of {names}")
    return values.split(sizes, dim)[names.index(name)]


class _Field:
    """The equations of a flat batch, ``(B, N)``, or of some of its circuits."""

    autonomous = True

    def __init__(self, system: System, filler: Tensor, rows: Tensor | None = None) -> None:
        self._system, self._filler, self._rows = system, filler, rows

    def _full(self, state: Tensor) -> Tensor:
        if self._rows is not None:
            state = self._filler.index_copy(0, self._rows, state)
        return state.reshape(*self._system.batch, self._system.width)

    def _own(self, values: Tensor, core: int) -> Tensor:
        flat = values.reshape(-1, *values.shape[-core:])
        return flat if self._rows is None else flat[self._rows]

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self._own(self._system.field(self._full(state)), 1)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._own(self._system.jacobian(self._full(state)), 2)

    def select(self, index: Tensor) -> "_Field":
        rows = index if self._rows is None else self._rows[index]
        return _Field(self._system, self._filler, rows)


def refuse_arguments(**given: Any) -> None:
    """Raise for arguments that only a :class:`Circuit` takes; None counts as left out."""
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"{name}: got {value!r} with a circuit of another kind than Circuit, "
                "expected it to be left out"
            )


def trajectory(
    circuit: DynamicalCircuit,
    t: Tensor,
    start: Any,
    *,
    method: str,
    rtol: float,
    atol: float | None,
    on_failure: str,
) -> JointTrajectory:
    """What :func:`simulate` does for circuits of another kind than :class:`Circuit`."""
    check_choice("method", method, tuple(METHODS))
    check_choice("on_failure", on_failure, ON_FAILURE)
    system = System(circuit)
    t = as_tensor_or_array("t", t, system.device)
    check_finite("t", t)
    if t.ndim != 1 or t.numel() < 2 or not (physical(t).diff() > 0).all():
        raise ValueError(f"t: got shape {tuple(t.shape)}, expected (T,) increasing times, T >= 2")
    begin = _start(system, start)
    rtol = check_number("rtol", rtol, low=4.0 * torch.finfo(system.dtype).eps, high=1.0)
    check_memory(
        "simulate: the trajectory", (t.numel(), *begin.shape), system.dtype, system.device, 3
    )
    size = begin.detach().abs().reshape(-1, system.width)
    scale = torch.ones_like(size)
    if atol is None:
        largest = torch.cat(
            [part.amax(-1, keepdim=True).expand_as(part) for part in system.split(size)], -1
        )
        whole = size.amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest, torch.where(whole > 0, whole, 1.0))
        atol = 0.01 * rtol
    floor = torch.full_like(scale, check_number("atol", atol, low=0.0))
    filler = system.plain(system.rest, begin.shape).reshape(-1, system.width)
    flat = begin.reshape(-1, system.width)
    control = StepControl(rtol, floor, scale)
    no_breaks = torch.empty(1, 0, dtype=torch.float64, device=system.device)
    whole_time = Pieces(no_breaks, t[0].to(no_breaks), t[-1].to(no_breaks))
    found = run(_Field(system, filler), flat, t.to(system.device), method, control, whole_time)
    report_failures(found, system.batch, on_failure, control.max_steps)
    states = found.states.reshape(t.numel(), *begin.shape)
    time = found.time.reshape(system.batch)
    return JointTrajectory(t, states, system.names, system.sizes, time)


def _start(system: System, start: Any) -> Tensor:
    if start is None:
        return system.rest
    return state_of(system, start.parts if isinstance(start, JointSteadyState) else start)


def joint_spectrum(
    circuit: DynamicalCircuit,
    frequency: Any,
    *,
    noise: NoiseByPart,
    sided: str,
    state: Any,
) -> JointSpectrum:
    """What :func:`cross_spectrum` does for circuits of another kind than :class:`Circuit`."""
    check_choice("sided", sided, ("one", "two"))
    system = System(circuit)
    points = as_tensor_or_array("frequency", frequency, system.device)
    if points.ndim != 1 or points.numel() == 0:
        raise ValueError(f"frequency: got shape {tuple(points.shape)}, expected (F,), F >= 1")
    check_finite("frequency", points)
    if sided == "one":
        check_positive("frequency", points, allow_zero=True)
    strength = _strength(system, noise)
    shape = (*system.batch, points.numel(), system.width, system.width)
    check_memory("cross_spectrum: a result", shape, torch.complex128, system.device, 3)
    _, jacobian, stable, fixed = jacobian_at(circuit, state)
    _tell(stable, fixed)
    rotation = 2.0j * math.pi * points.double()
    identity = torch.eye(system.width, dtype=torch.float64, device=system.device)
    matrix = rotation[:, None, None] * identity - jacobian.unsqueeze(-3)
    right = torch.diag_embed(strength).unsqueeze(-3).to(matrix.dtype)
    response = torch.linalg.solve(matrix, right.expand(matrix.shape))
    density = response.conj() @ response.mT
    if sided == "one":
        density = density * (1.0 + (points > 0).to(density.dtype))[:, None, None]
    nan = complex(math.nan, math.nan)
    density = torch.where(stable[..., None, None, None], density, nan)
    dtype = system.dtype.to_complex()
    return JointSpectrum(
        points, density.to(dtype), sided, response.to(dtype), system.names, system.sizes
    )


def joint_covariance(circuit: DynamicalCircuit, *, noise: NoiseByPart, state: Any) -> Tensor:
    """What :func:`stationary_covariance` does for circuits that are no :class:`Circuit`."""
    system = System(circuit)
    strength = _strength(system, noise)
    _, jacobian, stable, fixed = jacobian_at(circuit, state)
    _tell(stable, fixed)
    eigenvalues = torch.linalg.eigvals(physical(jacobian))
    covariance = solve_lyapunov(jacobian, torch.diag_embed(strength), eigenvalues)
    covariance = torch.where(stable[..., None, None], covariance, math.nan)
    return covariance.to(system.dtype)


def _strength(system: System, noise: NoiseByPart) -> Tensor:
    """Standard deviations of white noise in each equation, float64 ``(..., N)``."""
    if not isinstance(noise, Mapping):
        noise = dict.fromkeys(system.names, noise)
    if unknown := set(noise) - set(system.names):
        raise ValueError(f"noise: got parts {sorted(unknown)}, expected some of {system.names}")
    parts = []
    for name, size in zip(system.names, system.sizes, strict=True):
        value, label = noise.get(name, 0.0), f"noise, {name}"
        if isinstance(value, Tensor):
            check_same_device("circuit", system.rest, label, as_float_tensor(label, value))
            check_broadcast(label, value.shape, (*system.batch, size), f"(..., {size})")
            check_positive(label, value, allow_zero=True)
            part = value.double()
        else:
            number = check_number(label, value, low=0.0)
            part = torch.tensor(number, dtype=torch.float64, device=system.device)
        parts.append(part.expand(*system.batch, size))
    return torch.cat(parts, -1)


def _tell(stable: Tensor, fixed: Tensor) -> None:
    stable, fixed = physical(stable), physical(fixed)
    if bad := int((~stable).sum()):
        missing = int((~fixed).sum())
        warnings.warn(
            f"no linear response of {bad} of {stable.numel()} circuits ({missing}: no steady "
            f"state; {bad - missing}: not proved stable). Their rows are NaN.",
            SteadyStateWarning,
            stacklevel=4,
        )
