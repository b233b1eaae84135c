"""The ORGaNICs circuit as a value: its parameters, and what follows from them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import equations
from .checks import (
    check_choice,
    check_finite,
    check_number,
    check_positive,
)
from .circuit_arguments import (
    check_state,
    check_values,
    checked_gains,
    checked_shapes,
    inhibitory_drive_of,
)
from .dispatch import Choice
from .problem import Problem
from .steady_state.backends import BACKENDS, Work
from .steady_state.find import find
from .steady_state.options import SolveOptions
from .steady_state.record import SteadyState

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
        inhibitory_drive: ``c = (b0 sigma)^m > 0``, the constant drive of the inhibitory neurons,
            ``(..., n)``, ``(n,)`` or a number. :meth:`from_gains` computes it.
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
    inhibitory_drive: Tensor
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    tau_y: Tensor
    tau_a: Tensor
    exponent: float
    rectified: bool
    # Of the class, so that it is no field; instances have their own.
    _checked: ClassVar[bool] = False
    parts: ClassVar[tuple[str, str]] = ("y", "a")

    def __init__(
        self,
        input_drive: Tensor,
        inhibitory_drive: Tensor | float,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        tau_y: Tensor | float = 1.0,
        tau_a: Tensor | float = 1.0,
        exponent: float = 2.0,
        rectified: bool = False,
    ) -> None:
        given: Any = (
            input_drive,
            inhibitory_drive,
            recurrent_weight,
            normalization_weight,
            tau_y,
            tau_a,
            exponent,
            rectified,
        )
        self._set(checked_shapes(Problem._make(given)))
        self.check_values()

    @classmethod
    def from_gains(
        cls,
        z: Tensor,
        input_gain: Tensor | float,
        baseline_gain: Tensor | float,
        semisaturation: Tensor | float,
        recurrent_weight: Tensor | None,
        normalization_weight: Tensor,
        tau_y: Tensor | float = 1.0,
        tau_a: Tensor | float = 1.0,
        exponent: float = 2.0,
        rectified: bool = False,
    ) -> "Circuit":
        """The circuit with ``d = b z`` and ``c = (b0 sigma)^m``, in the paper's own quantities.

        Args:
            z: The input before its gain, ``(..., n)``.
            input_gain: ``b``, ``(..., n)``, ``(n,)`` or a number.
            baseline_gain: ``b0``, positive, likewise.
            semisaturation: ``sigma``, positive, likewise: the size of an input that evokes half of
                the largest response.
            recurrent_weight: This and what follows as in the constructor.
            normalization_weight: See there.
            tau_y: See there.
            tau_a: See there.
            exponent: See there.
            rectified: See there.

        Raises:
            TypeError: An argument is no floating-point tensor or number.
            ValueError: A shape, dtype, device or value does not fit; the message names the
                argument, or ``inhibitory_drive`` where ``(b0 sigma)^m`` is too small a number.
        """
        z, input_gain, baseline_gain, semisaturation = checked_gains(
            z,
            {
                "input_gain": input_gain,
                "baseline_gain": baseline_gain,
                "semisaturation": semisaturation,
            },
        )
        exponent = check_number("exponent", exponent, low=1.0, high=64.0)
        return cls(
            input_gain * z,
            inhibitory_drive_of(baseline_gain, semisaturation, exponent),
            recurrent_weight,
            normalization_weight,
            tau_y,
            tau_a,
            exponent,
            rectified,
        )

    @classmethod
    def with_unchecked_values(cls, given: Problem) -> "Circuit":
        """As the constructor, without a look at the values: that would wait for the device.

        :meth:`steady_state` looks at them, where the backend does not do without.
        """
        circuit = cls.__new__(cls)
        circuit._set(checked_shapes(given))
        return circuit

    def _set(self, parameters: Problem) -> None:
        for name, value in parameters._asdict().items():
            object.__setattr__(self, name, value)

    def check_values(self) -> None:
        """Raise ValueError for values that no circuit can have; the message names the argument."""
        check_values(self.parameters)
        object.__setattr__(self, "_checked", True)

    @property
    def parameters(self) -> Problem:
        """All fields as one tuple, in the order of the constructor's arguments."""
        return Problem(*(getattr(self, name) for name in Problem._fields))

    @property
    def n(self) -> int:
        """Number of neurons of each type."""
        return self.input_drive.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The broadcast leading dimensions."""
        return self.parameters.leading_shape()

    def to(self, *args: Any, **kwargs: Any) -> "Circuit":
        """The same circuits on another device or in another dtype, as :meth:`torch.Tensor.to`."""
        return Circuit(*self.parameters.to(*args, **kwargs))

    def rest(self) -> tuple[Tensor, Tensor]:
        """``y = 0`` and ``a = c``, ``(..., n)``: the fixed point of the circuit without input."""
        return torch.zeros_like(self.input_drive), self.inhibitory_drive

    def vector_field(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``(dy/dt, da/dt)`` at ``y`` and ``a`` of shape ``(..., n)``, per unit of tau."""
        self._check_state(y, a)
        with equations.full_precision(y):
            residual_y, residual_a = self.parameters.residual(y, a)
        return residual_y / self.tau_y, residual_a / self.tau_a

    def jacobian(self, y: Tensor, a: Tensor) -> Tensor:
        """Analytic Jacobian of :meth:`vector_field`, ``(..., 2n, 2n)`` in the order ``(y, a)``."""
        self._check_state(y, a)
        with equations.full_precision(y):
            return self.parameters.jacobian(y, a)

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
            y, a = self.parameters.identity_steady_state()
        shape = (*self.batch_shape, self.n)
        return y.expand(shape), a.expand(shape)

    def steady_state(
        self,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int | None = None,
        on_failure: str = "warn",
        verify_stability: bool = True,
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
            verify_stability: Whether ``auto`` also checks that each fixed point which the fast
                iteration found is stable. Without it the solve is faster, and a fixed point that
                is not stable may be returned: check such circuits with
                :func:`deq_organics.check_stability`. With ``start`` it is always checked.
            backend: ``"torch"`` (works everywhere), ``"cuda"`` (Triton kernels), ``"native"`` (C
                kernels on a CPU), which raise where they do not apply, or ``"auto"`` (the fastest
                one that applies; see :meth:`backend_for`).
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
        begin = None if start is None else self._start(start, solver)
        options = SolveOptions.checked(
            solver,
            tol,
            max_iter,
            on_failure,
            verify_stability,
            self.input_drive.dtype,
            follows=begin is not None,
        )
        check_choice("backend", backend, BACKENDS.names())
        return find(self._broadcast(), options, backend, start=begin, checked=self._checked)

    def _start(self, start: str | tuple[Tensor, Tensor], solver: str) -> tuple[Tensor, Tensor]:
        """The state ``(y, a)`` that the argument ``start`` names, without a gradient."""
        if solver != "auto":
            raise ValueError(f"start: got one with solver={solver!r}, expected solver='auto'")
        if isinstance(start, str):
            check_choice("start", start, ("rest",))
            return torch.zeros_like(self.input_drive), self.inhibitory_drive.detach()
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

    def backend_for(self, solver: str = "auto", backend: str = "auto") -> Choice[str]:
        """Which backend :meth:`steady_state` takes with these arguments, and why.

        Raises:
            RuntimeError: The named backend does not apply.
        """
        check_choice("backend", backend, BACKENDS.names())
        options = SolveOptions.checked(solver, 1e-6, None, "warn", True)
        chosen = BACKENDS.choose(
            backend, Work(self._broadcast(), options, follows=False, checked=self._checked)
        )
        return Choice(chosen.backend.name, chosen.reason)

    def flatten(self) -> Problem:
        """The same circuits with one batch dimension, as the solvers take them."""
        return self._broadcast().flat()

    def _broadcast(self) -> Problem:
        """The parameters, ``input_drive`` with all leading dimensions."""
        shape = (*self.batch_shape, self.n)
        return self.parameters._replace(input_drive=self.input_drive.expand(shape))

    def _check_state(self, y: Tensor, a: Tensor, names: tuple[str, str] = ("y", "a")) -> None:
        state = dict(zip(names, (y, a), strict=True))
        check_state(self.input_drive, self.batch_shape, state)
