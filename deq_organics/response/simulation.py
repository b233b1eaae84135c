"""The circuit's trajectories in time."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import equations
from ..checks import (
    check_choice,
    check_finite,
    check_number,
    check_positive_int,
    physical,
    refuse_transforms,
)
from ..circuit import Circuit
from ..errors import SimulationError, SimulationWarning
from ..integration import METHODS, Outcome, StepControl, Trajectory, integrate
from ..integration.from_scipy import SCIPY_SOLVERS, integrate_by_scipy
from ..memory import check_memory
from ..problem import Flow, Problem
from ..steady_state.options import ON_FAILURE
from .arguments import as_tensor_or_array, check_circuit, like_circuit

__all__ = ["simulate"]

_SCIPY = "scipy_solver"
_ADAPTIVE_OPTIONS = ("first_step", "max_step", "max_num_steps")
_FIXED_OPTIONS = ("step_size",)
_SCIPY_OPTIONS = ("solver", "max_step")
# The default absolute tolerance, in units of rtol and of the circuit's own size.
_FLOOR = 0.01
# Elements of the Jacobians of the circuits that are stepped together.
_JACOBIANS_AT_A_TIME = 2**22
_NAMED = 5


def simulate(
    circuit: Circuit,
    t: Tensor,
    y0: Tensor | None = None,
    a0: Tensor | None = None,
    *,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float | None = None,
    on_failure: str = "warn",
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> tuple[Tensor, Tensor]:
    """Integrate the circuits' equations; differentiable by their parameters, the start and ``t``.

    Each circuit controls its own error with its own steps, so that its trajectory is the same
    alone and in any batch. One that diverges is NaN from there on and changes no other.

    Derivatives are those of the steps that were taken (discretize, then optimize), of every order,
    also in forward mode and under ``torch.func``; how long the steps are is not differentiated.

    Args:
        circuit: The circuits to simulate.
        t: Increasing times ``(T,)``, at least two, in the unit of the time constants.
        y0: Start of ``y``, broadcastable to ``(..., n)``; rest (zero) if left out.
        a0: Start of ``a``; rest (the inhibitory drive) if left out.
        method: With error control, explicit: ``"dopri5"``, ``"dopri8"`` (for the smallest
            tolerances), ``"bosh3"``, ``"fehlberg2"``, ``"adaptive_heun"``. With error control, for
            stiff circuits, as those with time constants over decades: ``"rodas5p"``. With fixed
            steps: ``"euler"``, ``"midpoint"``, ``"heun2"``, ``"heun3"``, ``"rk4"`` (the 3/8 rule).
            ``"scipy_solver"`` takes scipy's ``solve_ivp``, one circuit after the other, and has no
            derivative.
        rtol: Relative tolerance of each step, for each component of the state.
        atol: Absolute tolerance, to which errors are allowed where a component is close to zero.
            None is ``0.01 rtol`` times the circuit's own size, which is the largest ``|y0|`` and
            input drive for ``y``, and each neuron's ``a0`` and inhibitory drive for ``a``.
        on_failure: For circuits that do not get to the end of ``t`` and are NaN from some time on:
            ``"warn"`` says which, when and why in one warning, ``"error"`` raises
            :class:`SimulationError`, ``"ignore"`` leaves it to the caller to look for NaN.
        options: With error control ``first_step``, ``max_step`` and ``max_num_steps`` (100,000 if
            left out); with fixed steps ``step_size`` (from one time of ``t`` to the next if left
            out; states between steps are interpolated); for ``scipy_solver`` ``solver``
            (``"LSODA"``, ``"Radau"`` ...) and ``max_step``.
        **unknown: Refused.

    Returns:
        ``y`` and ``a`` at the times ``t``, each ``(T, ..., n)``.

    Raises:
        TypeError: An argument is not of its type, or an option is unknown.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
        MemoryError: The result does not fit into memory.
        RuntimeError: The method has no derivative and one is asked for.
    """
    check_circuit(circuit)
    check_choice("method", method, (*METHODS, _SCIPY))
    check_choice("on_failure", on_failure, ON_FAILURE)
    chosen = _options(method, options, unknown)
    t = _times(circuit, t)
    batch, n = circuit.batch_shape, circuit.n
    check_memory(
        "simulate: the trajectory",
        (t.numel(), *batch, 2 * n),
        circuit.input_drive.dtype,
        circuit.input_drive.device,
        copies=3,
    )
    start_y = _start(circuit, "y0", torch.zeros_like(circuit.input_drive) if y0 is None else y0)
    start_a = _start(circuit, "a0", circuit.inhibitory_drive if a0 is None else a0)
    start = torch.cat([start_y, start_a], -1).reshape(-1, 2 * n)
    problem = circuit.flatten()
    control = _control(problem, start, rtol, atol, chosen)
    with equations.full_precision(start):
        if method == _SCIPY:
            _refuse_derivatives(t, start, problem)
            found = integrate_by_scipy(
                Flow(problem), start, t, chosen.get("solver", "LSODA"), control
            )
        else:
            found = _integrate(Flow(problem), start, t, method, control)
    _report(found, batch, t, on_failure, control.max_steps)
    y, a = found.states.reshape(t.numel(), *batch, 2 * n).split(n, -1)
    return y, a


def _integrate(
    field: Flow, start: Tensor, t: Tensor, method: str, control: StepControl
) -> Trajectory:
    """All circuits together, or as many as their Jacobians allow."""
    size, width = start.shape
    together = max(1, _JACOBIANS_AT_A_TIME // width**2)
    if not METHODS[method].needs_jacobian or size <= together:
        return integrate(field, start, t, METHODS[method], control)
    parts = []
    for index in torch.arange(size, device=start.device).split(together):
        part = field.select(index)
        parts.append(integrate(part, start[index], t, METHODS[method], control.take(index)))
    return Trajectory(
        torch.cat([part.states for part in parts], 1),
        torch.cat([part.outcome for part in parts]),
        torch.cat([part.time for part in parts]),
    )


def _options(
    method: str, options: Mapping[str, Any] | None, unknown: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a method, checked."""
    allowed: tuple[str, ...]
    if method == _SCIPY:
        allowed = _SCIPY_OPTIONS
    elif METHODS[method].error_order is None:
        allowed = _FIXED_OPTIONS
    else:
        allowed = _ADAPTIVE_OPTIONS
    names = ", ".join(repr(name) for name in allowed)
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: unknown to simulate(), expected no arguments beyond circuit, "
            "t, y0, a0, method, rtol, atol, on_failure and options; the options of "
            f"method={method!r} are {names}, those of methods with fixed steps 'step_size'"
        )
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"options: got {type(options).__name__}, expected a dict")
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in allowed:
            raise ValueError(f"options: got {name!r}, expected only {names} with method={method!r}")
        if name == "solver":
            checked[name] = check_choice("options['solver']", value, SCIPY_SOLVERS)
        elif name == "max_num_steps":
            checked[name] = check_positive_int("options['max_num_steps']", value)
        else:
            checked[name] = check_number(f"options[{name!r}]", value, low=0.0, open_low=True)
    return checked


def _times(circuit: Circuit, t: Any) -> Tensor:
    device = circuit.input_drive.device
    t = as_tensor_or_array("t", t, device)
    check_finite("t", t)
    if t.ndim != 1 or t.numel() < 2:
        raise ValueError(f"t: got shape {tuple(t.shape)}, expected (T,) increasing times, T >= 2")
    if t.is_meta or device.type == "meta":
        raise ValueError(f"t: got device {t.device} and a circuit on {device}, expected values")
    step = physical(t).diff()
    if not (step > 0).all():
        raise ValueError(
            f"t: got a smallest step of {float(step.min()):g}, expected (T,) increasing times"
        )
    return t.to(device)


def _start(circuit: Circuit, name: str, value: Any) -> Tensor:
    tensor = like_circuit(name, value, circuit)
    check_finite(name, tensor)
    shape = (*circuit.batch_shape, circuit.n)
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected to broadcast to {shape}"
        ) from None


def _control(
    problem: Problem, start: Tensor, rtol: Any, atol: Any, options: Mapping[str, Any]
) -> StepControl:
    """Tolerances, from the size of each circuit where ``atol`` is None."""
    smallest = 4.0 * torch.finfo(start.dtype).eps
    rtol = check_number("rtol", rtol, low=0.0, high=1.0)
    if 0 < rtol < smallest:
        raise ValueError(
            f"rtol: got {rtol:g}, expected 0 or at least {smallest:.2g} for {start.dtype}"
        )
    if atol is not None:
        atol = check_number("atol", atol, low=0.0)
    if rtol == 0 and not atol:
        raise ValueError(f"rtol: got 0 with atol={atol}, expected one of them to be positive")
    if atol is None:
        y0, a0 = start.detach().abs().chunk(2, -1)
        drive, rest = problem.input_drive.detach(), problem.inhibitory_drive.detach()
        y = torch.maximum(y0, drive.abs()).amax(-1, keepdim=True).expand_as(y0)
        scale = torch.cat([y, torch.maximum(a0, rest)], -1)
        scale = torch.where(scale > 0, scale, 1.0)
        floor = torch.full_like(scale, _FLOOR * rtol)
    else:
        scale = torch.ones_like(start.detach())
        floor = scale * atol
    return StepControl(
        rtol,
        floor,
        scale,
        options.get("first_step"),
        options.get("max_step", math.inf),
        options.get("max_num_steps", 100_000),
        options.get("step_size"),
    )


def _refuse_derivatives(t: Tensor, start: Tensor, problem: Problem) -> None:
    tensors = [t, start, *(part for part in problem if isinstance(part, Tensor))]
    reason = refuse_transforms(tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reason = "derivatives"
    if reason:
        raise RuntimeError(
            f"method: got {_SCIPY!r}, which does not support {reason}, and they are asked for; "
            "use 'rodas5p' (for stiff circuits) or 'dopri5', or torch.no_grad()"
        )


def _report(
    found: Trajectory, batch: torch.Size, t: Tensor, on_failure: str, max_steps: int
) -> None:
    """Say which circuits did not get to the end, when and why."""
    outcome, time = physical(found.outcome), physical(found.time)
    failed = outcome != Outcome.FINISHED
    if on_failure == "ignore" or not failed.any():
        return
    reasons = {
        Outcome.DIVERGED: "diverge",
        Outcome.STALLED: "ask for steps below the resolution of time, for these tolerances",
        Outcome.TOO_MANY_STEPS: (
            f"take more than {max_steps} steps (stiff ones take few with method='rodas5p')"
        ),
    }
    parts = []
    for kind, reason in reasons.items():
        rows = (outcome == kind).nonzero().tolist()
        if rows:
            places = [
                f"{_place(row, batch)} at t = {float(time[tuple(row)]):.6g}"
                for row in rows[:_NAMED]
            ]
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            parts.append(f"{len(rows)} {reason}: {', '.join(places)}{more}")
    message = (
        f"{int(failed.sum())} of {failed.numel()} circuits do not get to the end of t: "
        f"{'; '.join(parts)}"
    )
    if on_failure == "error":
        raise SimulationError(message)
    warnings.warn(
        f"{message}. Their states are NaN from there on.", SimulationWarning, stacklevel=3
    )


def _place(row: list[int], batch: torch.Size) -> str:
    """The circuit's index in the batch; a transform's own dimensions come first."""
    flat, index = row[-1], []
    for size in reversed(batch):
        flat, rest = divmod(flat, size)
        index.append(rest)
    return f"[{', '.join(str(i) for i in (*row[:-1], *reversed(index)))}]"
