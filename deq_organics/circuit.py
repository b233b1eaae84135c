"""The ORGaNICs circuit as a value: its parameters, and what follows from them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import equations
from .checks import check_choice
from .circuit_arguments import (
    check_state,
    check_values,
    checked_gains,
    checked_shapes,
    checked_start,
    inhibitory_drive_of,
)
from .circuit_files import read_problem, write_problem
from .circuit_parts import pick
from .circuit_summary import FORMATS, represent, summarize
from .dispatch import Choice
from .problem import Problem
from .steady_state.backends import BACKENDS, Work
from .steady_state.find import find
from .steady_state.options import SolveOptions
from .steady_state.record import SteadyState

__all__ = ["Circuit"]


@dataclass(frozen=True, eq=False, repr=False)
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
        exponent: Power-law exponent ``m``, from 1 to 64 (2 in the paper): a number, or a tensor
            ``()``, ``(n,)`` or ``(..., n)``, one per neuron, which is differentiated like the
            others. Kernels take the number 2 only.
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
    exponent: float | Tensor
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
        exponent: Tensor | float = 2.0,
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
        exponent: Tensor | float = 2.0,
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
        z, input_gain, baseline_gain, semisaturation, exponent = checked_gains(
            z,
            {
                "input_gain": input_gain,
                "baseline_gain": baseline_gain,
                "semisaturation": semisaturation,
                "exponent": exponent,
            },
        )
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

    def __len__(self) -> int:
        """The first of the leading dimensions."""
        if not self.batch_shape:
            raise TypeError("a circuit without leading dimensions has no len()")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        """A circuit is always true, also an empty batch."""
        return True

    def __iter__(self) -> Iterator["Circuit"]:
        """The circuits of the first of the leading dimensions."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "Circuit":
        """The circuits that an index of the leading dimensions chooses, as of a tensor.

        Args:
            index: Ints, slices, None, an Ellipsis, masks, tensors or lists of ints, or a tuple of
                these; it never reaches the neurons.

        Raises:
            TypeError: The index is of another kind.
            IndexError: It is out of range, or has more dimensions than the circuits.
        """
        part = self.with_unchecked_values(pick(self.parameters, self.batch_shape, index))
        object.__setattr__(part, "_checked", self._checked)
        return part

    def __repr__(self) -> str:
        return represent(self.parameters)

    def summary(self, form: str = "plain") -> str:
        """All parameters as a table: shape, smallest, mean and largest value of each.

        Args:
            form: ``"plain"`` text, ``"markdown"`` or ``"latex"``, a ``tabular``.
        """
        return summarize(self.parameters, check_choice("form", form, FORMATS))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuits to a safetensors file, as a whole or not at all.

        The file holds every tensor, bit by bit, and in its metadata the version of the format and
        the options. Gradients are not saved. It takes the package safetensors.

        Raises:
            ImportError: safetensors is not installed.
            TypeError: The circuits have no values: they are on meta or inside ``torch.func``.
            OSError: The file cannot be written.
        """
        write_problem(self.parameters, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> "Circuit":
        """The circuits that :meth:`save` wrote.

        Raises:
            ImportError: safetensors is not installed.
            OSError: The file cannot be read.
            ValueError: It is no such file, is damaged, has a version, option or tensor that this
                version of the library does not know, or values that no circuit has.
        """
        return cls(*read_problem(path, device))

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
        begin = None
        if start is not None:
            rest = (self.inhibitory_drive, solver)
            begin = checked_start(self.input_drive, self.batch_shape, start, *rest)
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
