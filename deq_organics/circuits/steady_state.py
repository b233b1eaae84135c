"""Steady states of circuits of any kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    as_float_tensor,
    check_bool,
    check_choice,
    check_finite,
    check_number,
    check_positive_int,
    check_same_device,
    physical,
    refuse_export,
)
from ..circuit import Circuit
from ..steady_state.options import ON_FAILURE
from ..steady_state.record import report_failures
from ..steady_state.status import Status
from .implicit import differentiable
from .newton import Plain
from .protocol import DynamicalCircuit
from .search import find_fixed_points
from .system import System

__all__ = ["JointSteadyState", "find_steady_state", "state_of"]


@dataclass(frozen=True)
class JointSteadyState:
    """Steady states of circuits of any kind, and how each was reached.

    ``found["y"]`` is a part of the state. Where ``converged`` is false the circuit has no steady
    state in reach; ``status`` says why, and the state is NaN there, or, with
    ``on_failure="ignore"``, where the search ended. Such circuits have no gradient.
    """

    state: Tensor
    """All parts side by side, ``(..., N)``."""
    names: tuple[str, ...]
    """Of the parts, in order."""
    sizes: tuple[int, ...]
    """Of the parts."""
    converged: Tensor
    """Boolean, ``(...)``: a fixed point within ``tol``, proved stable unless that was not asked."""
    residual: Tensor
    """Length of the next step of Newton's method in units of the state, ``(...)``."""
    iterations: Tensor
    """Steps of the continuation and looks at the dynamics, ``(...)``."""
    status: Tensor
    """Each circuit's :class:`Status` as an integer, ``(...)``."""
    reached: Tensor
    """:class:`Reached` as an integer, ``(...)``: YES where the dynamics were followed there."""
    time: Tensor
    """Time until which the dynamics were followed, ``(...)``; NaN if they were not."""

    def __getitem__(self, name: str) -> Tensor:
        """The part of that name, ``(..., n_k)``."""
        if name not in self.names:
            raise KeyError(f"{name!r}: expected one of {self.names}")
        return self.parts[self.names.index(name)]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All parts, in order, as ``circuit.vector_field(*found.parts)`` takes them."""
        return self.state.split(self.sizes, -1)

    def __str__(self) -> str:
        status = physical(self.status)
        solved = int((status == Status.CONVERGED).sum())
        sizes = ", ".join(f"{n} {s}" for n, s in zip(self.names, self.sizes, strict=True))
        lines = [f"JointSteadyState of {status.numel()} circuits ({sizes}): {solved} converged"]
        for kind in Status:
            count = int((status == kind).sum())
            if count and kind != Status.CONVERGED:
                lines.append(f"  {count}: {kind.message}")
        return "\n".join(lines)


def find_steady_state(
    circuit: DynamicalCircuit,
    *,
    start: str | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    on_failure: str = "warn",
    verify_stability: bool = True,
) -> JointSteadyState | Any:
    """The steady state of a circuit of any kind, differentiable by its parameters.

    For a :class:`Circuit` this is :meth:`Circuit.steady_state`, with its fast methods. For others:

    1. Pseudo-transient continuation from ``circuit.rest()``: implicit steps in time that grow as
       the dynamics slow down, and become Newton's method.
    2. The fixed point has to be proved stable, by its Jacobian.
    3. Where that fails the dynamics are followed from rest, by a stiff integration that controls
       its error. Where they end Newton's method finds the fixed point.

    It takes ``O(N^3)`` operations a step and circuit. Derivatives, by the implicit function
    theorem, have any order up to the third, in reverse and forward mode and by ``torch.func``,
    without ``torch.vmap`` over parameters: these take leading dimensions instead.

    Args:
        circuit: Circuits.
        start: Follow the dynamics from here: ``"rest"``, or all parts of a state, in their order or
            by name, that broadcast with the circuits. None lets 1. to 3. find a stable fixed point.
        tol: Largest relative distance to the fixed point, as Newton's method estimates it; never
            less than 16 times the rounding unit of the dtype is asked for in the end.
        max_iter: Steps of the continuation; 200 if left out.
        on_failure: For circuits without a steady state in reach: ``"error"`` raises
            :class:`SteadyStateError`, ``"warn"`` warns and returns NaN for them, ``"ignore"``
            returns where the search ended.
        verify_stability: Whether a fixed point has to be proved stable. Without it, 1. may return
            one that is not.

    Returns:
        A :class:`SteadyState` of a :class:`Circuit`, else a :class:`JointSteadyState`.

    Raises:
        TypeError: An argument has the wrong type, or ``circuit`` lacks what a circuit needs.
        ValueError: A shape or a value does not fit; the message names the argument.
        SteadyStateError: A circuit was not solved, with ``on_failure="error"``.
        NotImplementedError: ``torch.vmap`` goes over the parameters, or a program is exported.
    """
    if isinstance(circuit, Circuit):
        if isinstance(start, Mapping):
            start = tuple(_in_order(System(circuit), start))
        begin = start if start is None or isinstance(start, str) else tuple(start)
        return circuit.steady_state(
            tol=tol,
            max_iter=max_iter,
            on_failure=on_failure,
            verify_stability=verify_stability,
            start=begin,  # type: ignore[arg-type]
        )
    return joint_steady_state(
        circuit,
        start=start,
        tol=tol,
        max_iter=max_iter,
        on_failure=on_failure,
        verify_stability=verify_stability,
    )


def joint_steady_state(
    circuit: DynamicalCircuit,
    *,
    start: str | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    on_failure: str = "warn",
    verify_stability: bool = True,
) -> JointSteadyState:
    """As :func:`find_steady_state`, by the equations alone also for a :class:`Circuit`."""
    refuse_export()
    check_choice("on_failure", on_failure, ON_FAILURE)
    check_bool("verify_stability", verify_stability)
    steps = 200 if max_iter is None else check_positive_int("max_iter", max_iter)
    tol = check_number("tol", tol, low=0.0, high=1.0, open_low=True)
    system = System(circuit)
    begin = None
    if start is not None:
        state = state_of(system, start)
        begin = system.plain(state, state.shape).reshape(-1, system.width)
    plain = Plain(system, tol)
    found = find_fixed_points(plain, begin, steps, verify_stability=verify_stability)
    status = found.status.reshape(system.batch)
    converged = status == Status.CONVERGED
    state = differentiable(
        system, found.state.reshape(*system.batch, system.width), converged, on_failure
    )
    time = found.time.reshape(system.batch)
    if on_failure != "ignore" and not converged.all():
        report_failures(status, on_failure, torch.full_like(time, torch.nan), time)
        state = torch.where(converged.unsqueeze(-1), state, torch.nan)
    return JointSteadyState(
        state,
        system.names,
        system.sizes,
        converged,
        found.residual.reshape(system.batch),
        found.iterations.reshape(system.batch),
        status,
        found.reached.reshape(system.batch),
        time,
    )


def state_of(
    system: System, given: str | Sequence[Tensor] | Mapping[str, Tensor], name: str = "start"
) -> Tensor:
    """A state ``(..., N)`` with the circuits' leading dimensions, from ``"rest"`` or its parts."""
    if isinstance(given, str):
        check_choice(name, given, ("rest",))
        return system.rest
    parts = _in_order(system, given, name)
    for part_name, size, part in zip(system.names, system.sizes, parts, strict=True):
        label = f"{name}, {part_name}"
        as_float_tensor(label, part)
        check_same_device("circuit", system.rest, label, part)
        check_finite(label, part)
        fits = part.ndim > 0 and part.shape[-1] == size and part.dtype == system.dtype
        try:
            fits = fits and torch.broadcast_shapes(part.shape[:-1], system.batch) == system.batch
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{label}: got {part.dtype} of shape {tuple(part.shape)}, expected {system.dtype} "
                f"that broadcasts to {(*system.batch, size)}"
            )
    return system.join(parts)


def _in_order(
    system: System, given: Sequence[Tensor] | Mapping[str, Tensor], name: str = "start"
) -> Sequence[Tensor]:
    """All parts of a state, in their order."""
    if isinstance(given, Mapping):
        if set(given) != set(system.names):
            raise ValueError(f"{name}: got parts {tuple(given)}, expected {system.names}")
        return [given[part] for part in system.names]
    if not isinstance(given, Sequence):
        raise TypeError(
            f"{name}: got {type(given).__name__}, expected 'rest' or all parts {system.names}"
        )
    if len(given) != len(system.names):
        raise ValueError(f"{name}: got {len(given)} parts, expected {system.names}")
    return given
