"""The circuit's trajectories in time."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import equations
from ..checks import (
    check_bool,
    check_choice,
    check_finite,
    check_number,
    check_positive_int,
    physical,
    refuse_transforms,
)
from ..circuit import Circuit
from ..circuits import DynamicalCircuit, JointSteadyState
from ..integration import METHODS, StepControl
from ..integration.from_scipy import SCIPY_SOLVERS, integrate_by_scipy
from ..memory import check_memory
from ..steady_state.options import ON_FAILURE
from ..steady_state.record import SteadyState
from .any_circuit import refuse_arguments, trajectory
from .arguments import as_tensor_or_array, check_circuit
from .drives import INTERPOLATIONS
from .failures import report_failures
from .gains import InputGains
from .inputs import set_up
from .running import run, run_by_intervals
from .setting import Input, Setting
from .settling import Settling
from .trajectory import Trajectory

__all__ = ["simulate"]

_SCIPY = "scipy_solver"
_ADAPTIVE_OPTIONS = ("first_step", "max_step", "max_num_steps")
_FIXED_OPTIONS = ("step_size",)
_SCIPY_OPTIONS = ("solver", "max_step")
# The default absolute tolerance, in units of rtol and of the circuit's own size.
_FLOOR = 0.01

_Given = Callable[[Tensor], Tensor] | Tensor | tuple[Tensor, Tensor]


def simulate(
    circuit: Circuit | DynamicalCircuit,
    t: Tensor,
    y0: Tensor | None = None,
    a0: Tensor | None = None,
    *,
    start: str
    | Sequence[Tensor]
    | Mapping[str, Tensor]
    | SteadyState
    | Trajectory
    | JointSteadyState
    | None = None,
    input_drive: _Given | None = None,
    inhibitory_drive: _Given | None = None,
    gains: InputGains | None = None,
    jumps: Sequence[float | Tensor] | Tensor = (),
    interpolation: str = "linear",
    stop_when_settled: bool = False,
    recompute: bool = False,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float | None = None,
    on_failure: str = "warn",
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Trajectory:
    """Integrate the circuits' equations; differentiable by their parameters, the start and ``t``.

    Each circuit controls its own error with its own steps, so that its trajectory is the same
    alone and in any batch. One that diverges is NaN from there on and changes no other.

    The input may change in time. A drive is given as one of these:

    - A function of the time. It gets a float64 tensor ``(..., 1)`` with a time for each circuit of
      the batch, and returns a tensor that broadcasts to ``(..., n)``, as
      ``lambda t: contrast * torch.cos(t)``. Where it jumps has to be said by ``jumps``: steps end
      there exactly, and take it from the side on which they are. Without, a short pulse may be
      stepped over.
    - A tensor ``(T, ..., n)``, its values at the times ``t``; or a pair ``(times, values)`` with
      increasing times ``(S,)`` of its own and values ``(S, ..., n)``. Between these times it is
      straight, or with ``interpolation="previous"`` the value before. Steps end where it bends or
      jumps; the times of samples are not differentiated.

    Leading dimensions of drives broadcast with the circuits'.

    Derivatives are those of the steps that were taken (discretize, then optimize), of every order
    up to the method's own, also in forward mode and under ``torch.func``; how long the steps are is
    not differentiated.

    Args:
        circuit: The circuits to simulate. Those of another kind than :class:`Circuit` take ``t``,
            ``start`` (all parts, in order or by name; their ``rest()`` if left out), ``method``,
            ``rtol``, ``atol`` and ``on_failure`` alone.
        t: Increasing times ``(T,)``, at least two, in the unit of the time constants.
        y0: Start of ``y``, broadcastable to ``(..., n)``; rest (zero) if left out.
        a0: Start of ``a``; rest (the inhibitory drive at the first time) if left out.
        start: Instead of these ``"rest"``, ``(y, a)``, a :class:`SteadyState`, or a
            :class:`Trajectory`, which is carried on from its last state, its gains' too.
        input_drive: ``d = b z`` in time; None is the circuit's own.
        inhibitory_drive: ``c = (b0 sigma)^m`` in time, positive; None is the circuit's own.
        gains: Gains that obey Eq. 17, and what they act on; in place of both drives.
        jumps: Times at which the input may jump, differentiable: numbers, or a tensor ``(K,)``, or
            ``(..., K)`` with times of its own for each circuit. Those outside of ``t`` do nothing.
        interpolation: What sampled input is between its times, ``"linear"`` or ``"previous"``.
        stop_when_settled: With steady input, look at each time of ``t`` whether a circuit has
            settled, and if so leave it at its fixed point. That is claimed where a fixed point that
            is proved stable is closer than a tenth of a step's tolerance.
        recompute: For long simulations that are differentiated: keep the states at the times ``t``
            alone, and compute the steps between two of them again in the backward pass.
            Takes about twice the time, and first and second derivatives in reverse mode only.
        method: With error control, explicit: ``"dopri5"``, ``"dopri8"`` (for the smallest
            tolerances), ``"bosh3"``, ``"fehlberg2"``, ``"adaptive_heun"``. With error control, for
            stiff circuits, as those with time constants over decades: ``"rodas5p"``. With fixed
            steps: ``"euler"``, ``"midpoint"``, ``"heun2"``, ``"heun3"``, ``"rk4"`` (the 3/8 rule).
            ``"scipy_solver"`` takes scipy's ``solve_ivp``, one circuit after the other, and has no
            derivative.
        rtol: Relative tolerance of each step, for each component of the state.
        atol: Absolute tolerance, to which errors are allowed where a component is close to zero.
            None is ``0.01 rtol`` times the circuit's own size, which is the largest ``|y0|`` and
            input drive for ``y``, each neuron's ``a0`` and inhibitory drive for ``a``, and 1 for
            gains. A function of the time is looked at for its size at up to 64 times of ``t``, and
            between jumps.
        on_failure: For circuits that do not get to the end of ``t`` and are NaN from some time on:
            ``"warn"`` says which, when and why in one warning, ``"error"`` raises
            :class:`SimulationError`, ``"ignore"`` leaves it to the caller to look for NaN.
        options: With error control ``first_step``, ``max_step`` and ``max_num_steps`` (100,000 if
            left out; with ``stop_when_settled`` or ``recompute`` from one time to the next); with
            fixed steps ``step_size`` (from one time of ``t`` to the next if left out; states
            between steps are interpolated); for ``scipy_solver`` ``solver`` (``"LSODA"``,
            ``"Radau"`` ...) and ``max_step``.
        **unknown: Refused.

    Returns:
        A :class:`Trajectory`, which unpacks as ``y, a`` at the times ``t``, each ``(T, ..., n)``;
        of circuits of another kind a :class:`JointTrajectory`.

    Raises:
        TypeError: An argument is not of its type, or an option is unknown.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
        MemoryError: The result does not fit into memory.
        RuntimeError: The method has no derivative and one is asked for, or ``recompute`` or
            ``stop_when_settled`` are asked for under a transform.
    """
    if not isinstance(circuit, Circuit) and isinstance(circuit, DynamicalCircuit):
        refuse_arguments(
            y0=y0,
            a0=a0,
            input_drive=input_drive,
            inhibitory_drive=inhibitory_drive,
            gains=gains,
            options=options,
            jumps=jumps if len(jumps) else None,
            interpolation=None if interpolation == "linear" else interpolation,
            stop_when_settled=stop_when_settled or None,
            recompute=recompute or None,
            **unknown,
        )
        # The static type is that of a Circuit, which is what most callers have.
        return trajectory(  # type: ignore[return-value]
            circuit, t, start, method=method, rtol=rtol, atol=atol, on_failure=on_failure
        )
    circuit = check_circuit(circuit)
    check_choice("method", method, (*METHODS, _SCIPY))
    check_choice("on_failure", on_failure, ON_FAILURE)
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    chosen = _options(method, options, unknown)
    t = _times(circuit, t)
    given = Input(input_drive, inhibitory_drive, gains, jumps, interpolation)
    by_intervals = _by_intervals(stop_when_settled, recompute, method, given)
    with equations.full_precision(circuit.input_drive):
        setting = set_up(circuit, t, (y0, a0, start), given)
        check_memory(
            "simulate: the trajectory",
            (t.numel(), *setting.start.shape),
            setting.start.dtype,
            setting.start.device,
            copies=3,
        )
        control = _control(setting, rtol, atol, chosen)
        since = torch.full(
            (setting.start.shape[0],), math.nan, dtype=torch.float64, device=t.device
        )
        begin, work = setting.start, (setting.field, setting.start, t)
        if method == _SCIPY:
            solver = chosen.get("solver", "LSODA")
            found = integrate_by_scipy(*work, solver, control, setting.pieces)
        elif by_intervals:
            _refuse_transforms(t, setting)
            settling = Settling(setting.problem, control) if stop_when_settled else None
            found, since = run_by_intervals(
                *work, method, control, setting.pieces, recompute=recompute, settling=settling
            )
        else:
            found = run(*work, method, control, setting.pieces)
    report_failures(found, setting.batch, on_failure, control.max_steps)
    states = found.states.reshape(t.numel(), *setting.batch, begin.shape[-1])
    y, a, *moving = states.split(circuit.n, -1)
    return Trajectory(
        t,
        y,
        a,
        circuit.exponent,
        found.time.reshape(setting.batch),
        since.reshape(setting.batch),
        **dict(zip(setting.moving, moving, strict=True)),
    )


def _by_intervals(stop_when_settled: Any, recompute: Any, method: str, given: Input) -> bool:
    """Whether steps have to end at every time."""
    check_bool("stop_when_settled", stop_when_settled)
    check_bool("recompute", recompute)
    if stop_when_settled and not given.is_steady:
        raise ValueError("stop_when_settled: got True with input that changes, expected False")
    wanted = bool(stop_when_settled or recompute)
    if wanted and method == _SCIPY:
        raise ValueError(
            f"method: got {_SCIPY!r} with stop_when_settled or recompute, expected another"
        )
    return wanted


def _refuse_transforms(t: Tensor, setting: Setting) -> None:
    reason = refuse_transforms([t, setting.start, *setting.problem.tensors()])
    if reason:
        raise RuntimeError(f"stop_when_settled and recompute do not support {reason}")


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
            "t, y0, a0, start, input_drive, inhibitory_drive, gains, jumps, interpolation, "
            "stop_when_settled, recompute, method, rtol, atol, on_failure and options; the options "
            f"of method={method!r} are {names}, those of methods with fixed steps 'step_size'"
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


def _control(setting: Setting, rtol: Any, atol: Any, options: Mapping[str, Any]) -> StepControl:
    """Tolerances, from the size of each circuit where ``atol`` is None."""
    start, n = setting.start, setting.problem.input_drive.shape[-1]
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
        largest = torch.maximum(start.detach().abs(), setting.size.abs())
        y = largest[:, :n].amax(-1, keepdim=True).expand(-1, n)
        scale = torch.cat([y, largest[:, n:]], -1)
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
