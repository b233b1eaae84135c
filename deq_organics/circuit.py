"""The ORGaNICs circuit as a value: its parameters, and what follows from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import equations
from ._validation import (
    as_float_tensor,
    check_bool,
    check_broadcast,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    check_same_device,
    physical,
)
from .backends import BACKENDS, Choice, choose
from .cuda import prepare
from .implicit import SolveOptions, steady_state_function
from .solvers import Problem, Status
from .steady_state import SteadyState, check_solve_options, report_failures

__all__ = ["Circuit"]


@dataclass(frozen=True, eq=False)
class Circuit:
    """A batch of ORGaNICs circuits with ``n`` excitatory and ``n`` inhibitory neurons each.

    Main model (Eq. 1/15 of the paper; ``m`` is the exponent, ``a+ = relu(a)^(1/m)``)::

        tau_y dy/dt = -y + d + (1 - a+) Wr y
        tau_a da/dt = -a + c + W (|y|^m relu(a))

    In the rectified model (Eq. 87) ``y`` enters both recurrent terms as ``relu(y)``.
    Leading dimensions broadcast. Half-precision tensors are taken to float32.

    Args:
        input_drive: ``d = b z``, the gated input drive, ``(..., n)``.
        semisaturation: ``c = (b0 sigma)^m > 0``, ``(..., n)``, ``(n,)`` or a number.
        recurrent_weight: ``Wr``, ``(n, n)`` shared or ``(..., n, n)`` one per circuit; None is
            the identity.
        normalization_weight: ``W >= 0``, ``(n, n)`` or ``(..., n, n)``.
        tau_y: Time constants of the excitatory neurons, positive, in any unit of time: a number,
            ``(n,)`` or ``(..., n)``.
        tau_a: Time constants of the inhibitory neurons, in the same unit.
        exponent: Power-law exponent ``m >= 1`` (2 in the paper).
        rectified: Whether this is the rectified model.

    Raises:
        TypeError: An argument is no floating-point tensor or number.
        ValueError: A shape, dtype, device or value does not fit; the message names the argument.
    """

    input_drive: Tensor
    semisaturation: Tensor
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    tau_y: Tensor
    tau_a: Tensor
    exponent: float
    rectified: bool

    def __init__(
        self,
        input_drive: Tensor,
        semisaturation: Tensor | float,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        tau_y: Tensor | float = 1.0,
        tau_a: Tensor | float = 1.0,
        exponent: float = 2.0,
        rectified: bool = False,
    ) -> None:
        self._assign(
            input_drive,
            semisaturation,
            recurrent_weight,
            normalization_weight,
            tau_y,
            tau_a,
            exponent,
            rectified,
        )
        self._check_values()

    @classmethod
    def _with_unchecked_values(cls, *arguments: Any) -> "Circuit":
        """As the constructor, but without :meth:`_check_values`, which waits for the device."""
        circuit = cls.__new__(cls)
        circuit._assign(*arguments)
        return circuit

    def _assign(
        self,
        input_drive: Tensor,
        semisaturation: Tensor | float,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        tau_y: Tensor | float,
        tau_a: Tensor | float,
        exponent: float,
        rectified: bool,
    ) -> None:
        drive = _at_least_single(as_float_tensor("input_drive", input_drive))
        if drive.ndim == 0 or drive.shape[-1] == 0:
            raise ValueError(
                f"input_drive: got shape {tuple(drive.shape)}, expected (..., n) with n >= 1"
            )
        w = _matrix("normalization_weight", normalization_weight, drive)
        wr = None
        if recurrent_weight is not None:
            wr = _matrix("recurrent_weight", recurrent_weight, drive)
        vectors = {
            name: _vector(name, value, drive)
            for name, value in (
                ("semisaturation", semisaturation),
                ("tau_y", tau_y),
                ("tau_a", tau_a),
            )
        }
        batches = {"input_drive": drive.shape[:-1], "normalization_weight": w.shape[:-2]}
        if wr is not None:
            batches["recurrent_weight"] = wr.shape[:-2]
        batches |= {name: vector.shape[:-1] for name, vector in vectors.items()}
        try:
            torch.broadcast_shapes(*batches.values())
        except RuntimeError:
            found = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
            raise ValueError(
                f"leading dimensions: got {found}, expected shapes that broadcast together"
            ) from None
        fields = {
            "input_drive": drive,
            "recurrent_weight": wr,
            "normalization_weight": w,
            **vectors,
            "exponent": check_number("exponent", exponent, low=1.0, high=64.0),
            "rectified": check_bool("rectified", rectified),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _check_values(self) -> None:
        """Raise ValueError for values that no circuit can have; the message names the argument."""
        check_finite("input_drive", self.input_drive)
        check_positive("normalization_weight", self.normalization_weight, allow_zero=True)
        if self.recurrent_weight is not None:
            check_finite("recurrent_weight", self.recurrent_weight)
        check_positive("semisaturation", self.semisaturation)
        check_positive("tau_y", self.tau_y)
        check_positive("tau_a", self.tau_a)

    @property
    def n(self) -> int:
        """Number of neurons of each type."""
        return self.input_drive.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The broadcast leading dimensions."""
        shapes = [
            tensor.shape[:-1]
            for tensor in (self.input_drive, self.semisaturation, self.tau_y, self.tau_a)
        ]
        weights = (self.recurrent_weight, self.normalization_weight)
        shapes += [weight.shape[:-2] for weight in weights if weight is not None]
        return torch.broadcast_shapes(*shapes)

    def to(self, *args: Any, **kwargs: Any) -> "Circuit":
        """The same circuits on another device or in another dtype, as :meth:`torch.Tensor.to`."""
        wr = self.recurrent_weight
        return Circuit(
            self.input_drive.to(*args, **kwargs),
            self.semisaturation.to(*args, **kwargs),
            None if wr is None else wr.to(*args, **kwargs),
            self.normalization_weight.to(*args, **kwargs),
            self.tau_y.to(*args, **kwargs),
            self.tau_a.to(*args, **kwargs),
            self.exponent,
            self.rectified,
        )

    def vector_field(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``(dy/dt, da/dt)`` at ``y`` and ``a`` of shape ``(..., n)``, per unit of tau."""
        self._check_state(y, a)
        with equations.full_precision(y):
            residual_y, residual_a = equations.residual(
                y,
                a,
                self.input_drive,
                self.semisaturation,
                self.recurrent_weight,
                self.normalization_weight,
                self.exponent,
                self.rectified,
            )
        return residual_y / self.tau_y, residual_a / self.tau_a

    def jacobian(self, y: Tensor, a: Tensor) -> Tensor:
        """Analytic Jacobian of :meth:`vector_field`, ``(..., 2n, 2n)`` in the order ``(y, a)``."""
        self._check_state(y, a)
        with equations.full_precision(y):
            return equations.jacobian(
                y,
                a,
                self.recurrent_weight,
                self.normalization_weight,
                self.tau_y,
                self.tau_a,
                self.exponent,
                self.rectified,
            )

    def firing_rates(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(y+, y-, a+)``, each ``(..., n)``; in the rectified model ``y-`` drives nothing."""
        self._check_state(y, a)
        m = self.exponent
        return (
            equations.firing_rate(y, m),
            equations.complementary_firing_rate(y, m),
            equations.inhibitory_firing_rate(a, m),
        )

    def closed_form(self) -> tuple[Tensor, Tensor]:
        """The unique fixed point ``(y, a)`` for ``Wr = I`` (Eq. 4, rectified Eq. 89).

        Raises:
            ValueError: The circuit has recurrent weights other than None.
        """
        if self.recurrent_weight is not None:
            raise ValueError(
                "recurrent_weight: got a matrix, expected None (the identity): "
                "other circuits have no closed form; use steady_state()"
            )
        with equations.full_precision(self.input_drive):
            y, a = equations.identity_steady_state(
                self.input_drive,
                self.semisaturation,
                self.normalization_weight,
                self.exponent,
                self.rectified,
            )
        shape = (*self.batch_shape, self.n)
        return y.expand(shape), a.expand(shape)

    def steady_state(
        self,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int | None = None,
        on_failure: str = "warn",
        check_stability: bool = True,
        backend: str = "auto",
        start: str | tuple[Tensor, Tensor] | None = None,
    ) -> SteadyState:
        """The circuit's steady state, differentiable by every tensor but the time constants.

        A circuit may have several, or a stable one beside a cycle. Without ``start`` this is a
        stable fixed point, and not necessarily the one that the circuit reaches from rest: that
        is a matter of its dynamics and its time constants, which ``start="rest"`` follows. *Rest*
        is ``y = 0, a = c``, the fixed point of the circuit without input.

        Args:
            solver: ``"auto"`` (closed form where ``Wr = I``; else the fast fixed-point iteration,
                with a check of stability and with Newton's method and the dynamics from rest for
                what it leaves unsolved), ``"algorithm1"`` (the paper's iteration) or one of
                torchdeq's: ``"anderson"``, ``"broyden"``, ``"fixed_point_iter"``,
                ``"simple_fixed_point_iter"``. Only ``auto`` checks that the fixed point is stable.
            tol: Largest relative residual of a solved circuit; never less than 16 times the
                rounding unit of the dtype (1.9e-6 in float32) is asked for in the end.
            max_iter: Iterations of the solver (``auto``: of its fast iteration; with ``start``:
                steps along the trajectory); None is the solver's own default.
            on_failure: For circuits without a steady state in reach: ``"error"`` raises
                :class:`SteadyStateError`, ``"warn"`` warns and returns NaN for them,
                ``"ignore"`` returns finite numbers and leaves it to the caller to look at
                ``converged`` and ``status``.
            check_stability: Whether ``auto`` also checks that each fixed point which the fast
                iteration found is stable. Without it the solve is faster, and a fixed point that
                is not stable may be returned: check such circuits with
                :func:`deq_organics.check_stability`. With ``start`` it is always checked.
            backend: ``"torch"`` (works everywhere), ``"cuda"`` (Triton kernels; raises where it
                does not apply) or ``"auto"`` (the faster one that applies; see
                :meth:`backend_for`).
            start: Where the dynamics start: ``"rest"``, or a state ``(y, a)``, tensors of shape
                ``(..., n)`` whose leading dimensions broadcast with the circuits', ``a`` positive.
                The result is then the stable fixed point where the circuit itself settles from
                there: each trajectory is followed by a stiff integration that controls its error,
                and where it ends Newton's method finds the fixed point beside it. A circuit that
                does not settle is reported, also where it has a stable fixed point elsewhere. For
                ``solver="auto"`` only; by torch, and much slower than without.

        Returns:
            The state with residual, iterations, status and what is known of the dynamics, per
            circuit.

        Raises:
            RuntimeError: The named backend does not apply.
        """
        return self._solve(solver, tol, max_iter, on_failure, check_stability, backend, start=start)

    def _solve(
        self,
        solver: str,
        tol: float,
        max_iter: int | None,
        on_failure: str,
        check_stability: bool,
        backend: str,
        check_values: Callable[[], None] | None = None,
        start: str | tuple[Tensor, Tensor] | None = None,
    ) -> SteadyState:
        """As :meth:`steady_state`; ``check_values`` is still to be called, early or on failure."""
        drive = self.input_drive
        begin = None if start is None else self._start(start, solver, backend)
        tol, max_iter = check_solve_options(
            solver, tol, max_iter, on_failure, drive.dtype, follows=begin is not None
        )
        shared = None
        if begin is None and self.backend_for(solver, backend).backend == "cuda":
            with torch.no_grad():
                shared = prepare(self.flatten())
        elif check_values is not None:
            check_values()
        options = SolveOptions(
            solver,
            tol,
            max_iter,
            check_bool("check_stability", check_stability),
            self.exponent,
            self.rectified,
            on_failure == "error",
            shared,
            check_values or self._check_values,
        )
        lead = self.batch_shape
        if begin is not None:
            lead = torch.broadcast_shapes(lead, *(part.shape[:-1] for part in begin))
        solution = steady_state_function(
            options,
            drive.expand(*lead, self.n),
            self.semisaturation,
            self.recurrent_weight,
            self.normalization_weight,
            self.tau_y,
            self.tau_a,
            begin,
        )
        y, a, residual, iterations, status, reached, period, time = solution
        converged = status == Status.CONVERGED
        # Before NaN is put in, so that none flows back.
        rates = equations.firing_rate(y, self.exponent)
        if on_failure != "ignore" and not physical(converged).all():
            report_failures(status, on_failure, period, time)
            y, a, rates = (
                torch.where(converged.unsqueeze(-1), part, torch.nan) for part in (y, a, rates)
            )
        return SteadyState(
            y, a, rates, converged, residual, iterations, status, reached, period, time
        )

    def _start(
        self, start: str | tuple[Tensor, Tensor], solver: str, backend: str
    ) -> tuple[Tensor, Tensor]:
        """The state ``(y, a)`` that the argument ``start`` names, without a gradient."""
        if solver != "auto":
            raise ValueError(f"start: got one with solver={solver!r}, expected solver='auto'")
        if backend == "cuda":
            raise RuntimeError(
                "backend: got 'cuda', which does not follow the dynamics from a start; expected "
                "'torch' or 'auto' here"
            )
        if isinstance(start, str):
            check_choice("start", start, ("rest",))
            return torch.zeros_like(self.input_drive), self.semisaturation.detach()
        if not (isinstance(start, tuple | list) and len(start) == 2):
            raise TypeError(f"start: got {type(start).__name__}, expected 'rest' or (y, a)")
        y, a = start
        self._check_state(y, a, names=("start[0]", "start[1]"))
        check_finite("start[0]", y)
        check_positive("start[1]", a)
        try:
            torch.broadcast_shapes(y.shape, a.shape, (*self.batch_shape, self.n))
        except RuntimeError:
            raise ValueError(
                f"start: got shapes {tuple(y.shape)} and {tuple(a.shape)}, expected leading "
                f"dimensions that broadcast together with {tuple(self.batch_shape)}"
            ) from None
        return y.detach(), a.detach()

    def backend_for(self, solver: str = "auto", backend: str = "auto") -> Choice:
        """Which backend :meth:`steady_state` takes with these arguments, and why.

        Raises:
            RuntimeError: The named backend does not apply.
        """
        return choose(
            check_choice("backend", backend, BACKENDS),
            solver,
            self.input_drive,
            self.recurrent_weight,
            self.normalization_weight,
            (self.semisaturation, self.tau_y, self.tau_a),
            self.exponent,
            self.rectified,
        )

    def flatten(self) -> Problem:
        """The same circuits with one batch dimension, as the solvers take them."""
        return Problem.flatten(
            self.input_drive.expand(*self.batch_shape, self.n),
            self.semisaturation,
            self.recurrent_weight,
            self.normalization_weight,
            self.tau_y,
            self.tau_a,
            self.exponent,
            self.rectified,
        )

    def _check_state(self, y: Tensor, a: Tensor, names: tuple[str, str] = ("y", "a")) -> None:
        for name, tensor in zip(names, (y, a), strict=True):
            as_float_tensor(name, tensor)
            check_same_device("input_drive", self.input_drive, name, tensor)
            if tensor.ndim == 0 or tensor.shape[-1] != self.n:
                raise ValueError(
                    f"{name}: got shape {tuple(tensor.shape)}, expected (..., {self.n})"
                )
            if tensor.dtype != self.input_drive.dtype:
                raise ValueError(
                    f"{name}: got {tensor.dtype}, expected {self.input_drive.dtype} as the circuit"
                )
            try:
                torch.broadcast_shapes(tensor.shape[:-1], self.batch_shape)
            except RuntimeError:
                raise ValueError(
                    f"{name}: got shape {tuple(tensor.shape)}, expected leading dimensions that "
                    f"broadcast with {tuple(self.batch_shape)}"
                ) from None


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _like_drive(name: str, value: Tensor, drive: Tensor) -> Tensor:
    tensor = _at_least_single(as_float_tensor(name, value))
    check_same_device("input_drive", drive, name, tensor)
    if tensor.dtype != drive.dtype:
        raise ValueError(f"{name}: got {tensor.dtype}, expected {drive.dtype} as input_drive")
    return tensor


def _matrix(name: str, value: Tensor, drive: Tensor) -> Tensor:
    tensor, n = _like_drive(name, value, drive), drive.shape[-1]
    if tensor.ndim < 2 or tensor.shape[-2:] != (n, n):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected (..., {n}, {n})")
    return tensor


def _vector(name: str, value: Tensor | float, drive: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = drive.new_tensor(check_number(name, value, low=0.0, open_low=True))
    tensor, n = _like_drive(name, value, drive), drive.shape[-1]
    if tensor.ndim == 0:
        tensor = tensor.expand(n)
    check_broadcast(name, tensor.shape[-1:], (n,), f"a number, ({n},) or (..., {n})")
    return tensor
