"""ORGaNICs as a layer for static inputs: a deep equilibrium model with a stable steady state."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import gated_drive
from .checks import (
    as_float_tensor,
    check_all_finite,
    check_bool,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    check_positive_int,
    refuse_export,
)
from .circuit import Circuit
from .circuit_arguments import at_least_single
from .constrained import HoldsConstrained
from .dispatch import BACKENDS, Choice, with_parts
from .parametrizations import (
    Nonnegative,
    Positive,
    SingularValueBound,
    UnitInterval,
    bound_choice,
    set_bounds_backend,
)
from .problem import Problem
from .saved_options import Option, SavesOptions
from .steady_state.options import SolveOptions
from .steady_state.record import SteadyState

__all__ = ["ORGaNICsDEQ"]

_RECURRENCES = ("identity", "spectral", "unconstrained")
_INPUT_GAINS = ("attention", "tied")


class ORGaNICsDEQ(SavesOptions, HoldsConstrained):
    r"""Steady-state firing rates of an ORGaNICs circuit that a static input drives.

    From an input ``x`` the layer computes the input drive ``z = Wzx x``, scaled to length 1, and
    the input gain ``b = sigmoid(Wbx x)``; the circuit of :class:`Circuit` with ``d = b z`` and
    ``c = (b0 sigma)^m`` answers with its steady state (Section 6.1 of the paper). The steady
    state is differentiated implicitly.

    Args:
        input_size: Number of input features.
        hidden_size: Number ``n`` of excitatory, and of inhibitory, neurons.
        recurrence: Recurrent weights ``Wr``: ``"identity"`` (fixed; closed form, proved stable),
            ``"spectral"`` (learned, largest singular value at most ``max_singular_value``) or
            ``"unconstrained"`` (learned). Learned weights start at the identity.
        input_gain: ``"attention"`` computes ``b`` from the input; ``"tied"`` uses ``b = b0``.
        normalize_drive: Scale the input drive to length 1, as in the paper (a zero stays zero).
        learn_semisaturation: Learn ``sigma``; else it is fixed at ``semisaturation``.
        semisaturation: Start (or fixed value) of ``sigma``, positive.
        max_singular_value: Bound of the spectral recurrence; must be at least 1, where it starts.
        tau_y: Time constant of the excitatory neurons, in any unit; the rates do not depend on
            it, their stability does.
        tau_a: Time constant of the inhibitory neurons, in the same unit.
        exponent: Power-law exponent ``m`` of the firing rates.
        rectified: Use the rectified model (Eq. 87).
        solver: Solver of the steady state; see :meth:`Circuit.steady_state`.
        tol: Largest relative residual of a solved circuit.
        max_iter: Iterations of the solver; None is its default.
        on_failure: ``"error"``, ``"warn"`` or ``"ignore"``; see :meth:`Circuit.steady_state`.
        verify_stability: Check at every call that the steady states are stable; see
            :meth:`Circuit.steady_state`.
        backend: ``"torch"``, ``"cuda"``, ``"native"`` or ``"auto"``; see
            :meth:`Circuit.steady_state` and :meth:`backend_for`.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters. The steady state is solved in float32 at
            least.

    Shape:
        - Input: ``(*, input_size)``, any leading dimensions.
        - Output: ``(*, hidden_size)``, firing rates ``y+`` of the principal neurons, nonnegative.
    """

    input_weight: Tensor
    gain_weight: Tensor | None
    baseline_gain: Tensor
    semisaturation: Tensor
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    tau_y: Tensor
    tau_a: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        recurrence: str = "spectral",
        input_gain: str = "attention",
        *,
        normalize_drive: bool = True,
        learn_semisaturation: bool = False,
        semisaturation: float = 1.0,
        max_singular_value: float = 1.0,
        tau_y: float | Tensor = 1.0,
        tau_a: float | Tensor = 1.0,
        exponent: float = 2.0,
        rectified: bool = False,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int | None = None,
        on_failure: str = "warn",
        verify_stability: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.hidden_size = check_positive_int("hidden_size", hidden_size)
        self.recurrence = check_choice("recurrence", recurrence, _RECURRENCES)
        self.input_gain = check_choice("input_gain", input_gain, _INPUT_GAINS)
        self.normalize_drive = check_bool("normalize_drive", normalize_drive)
        self.learn_semisaturation = check_bool("learn_semisaturation", learn_semisaturation)
        self.exponent = check_number("exponent", exponent, low=1.0, high=64.0)
        self.rectified = check_bool("rectified", rectified)
        self.verify_stability = check_bool("verify_stability", verify_stability)
        self.max_singular_value = check_number("max_singular_value", max_singular_value, low=1.0)
        SolveOptions.checked(solver, tol, max_iter, on_failure, verify_stability)
        self.backend = backend
        self.solver, self.tol, self.max_iter, self.on_failure = solver, tol, max_iter, on_failure
        factory: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        if not (isinstance(factory["dtype"], torch.dtype) and factory["dtype"].is_floating_point):
            raise TypeError(f"dtype: got {dtype!r}, expected a floating-point torch.dtype")

        n = self.hidden_size
        # What reset_parameters() needs where the tensors were made without values.
        self._constants = {
            "semisaturation": check_number(
                "semisaturation", semisaturation, low=0.0, open_low=True
            ),
            "tau_y": _time_constant("tau_y", tau_y, n),
            "tau_a": _time_constant("tau_a", tau_a, n),
        }
        self.input_weight = nn.Parameter(torch.empty(n, self.input_size, **factory))
        if input_gain == "attention":
            self.gain_weight = nn.Parameter(torch.empty(n, self.input_size, **factory))
        else:
            self.register_parameter("gain_weight", None)
        self.baseline_gain = nn.Parameter(torch.full((n,), 0.5, **factory))
        if learn_semisaturation:
            self.semisaturation = nn.Parameter(torch.ones(n, **factory))
        else:
            self.register_buffer("semisaturation", torch.empty(n, **factory))
        self.normalization_weight = nn.Parameter(torch.ones(n, n, **factory))
        if recurrence == "identity":
            self.register_parameter("recurrent_weight", None)
        else:
            self.recurrent_weight = nn.Parameter(torch.eye(n, **factory))
        for name in ("tau_y", "tau_a"):
            self.register_buffer(name, torch.empty(n, **factory))

        self.constrain("baseline_gain", UnitInterval("baseline_gain"))
        self.constrain("normalization_weight", Nonnegative("normalization_weight"))
        if learn_semisaturation:
            self.constrain("semisaturation", Positive("semisaturation"))
        if recurrence == "spectral":
            bound = SingularValueBound(self.max_singular_value, "recurrent_weight", backend)
            self.constrain("recurrent_weight", bound)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as in the paper's Table 4, and set what is fixed as given.

        ``Wzx`` and ``Wbx`` are uniform in ``+-1/sqrt(input_size)``, ``b0 = 1/2``, ``log W``
        uniform in ``(-1, 0)`` with diagonal 0, ``Wr = I``; ``sigma`` and the time constants are
        those of the constructor. Needs no earlier values, so that it completes
        ``to_empty(device=...)``.

        Raises:
            ValueError: A time constant was given as a tensor without values (on meta).
        """
        n, like = self.hidden_size, self.input_weight
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        bound = 1.0 / math.sqrt(self.input_size)
        for name in ("input_weight", "gain_weight"):
            if name == "input_weight" or self.input_gain == "attention":
                drawn = torch.empty(n, self.input_size, **factory).uniform_(-bound, bound)
                self.fill(name, drawn)
        log_weight = torch.empty(n, n, **factory).uniform_(-1.0, 0.0)
        self.fill("normalization_weight", log_weight.fill_diagonal_(0.0).exp())
        self.fill("baseline_gain", torch.full((n,), 0.5, **factory))
        if self.recurrence != "identity":
            self.fill("recurrent_weight", torch.eye(n, **factory))
        for name, value in self._constants.items():
            if value is None and not like.is_meta:
                raise ValueError(
                    f"{name}: got a tensor on meta at construction, expected one with values"
                )
            if value is not None:
                self.fill(name, torch.tensor(value, **factory).expand(n))

    def shaping_options(self) -> dict[str, Option]:
        """The options that the state dict keeps: those on which the rates depend."""
        bounded = self.recurrence == "spectral"
        return {
            "recurrence": self.recurrence,
            "input_gain": self.input_gain,
            "normalize_drive": self.normalize_drive,
            "learn_semisaturation": self.learn_semisaturation,
            "max_singular_value": self.max_singular_value if bounded else None,
            "exponent": self.exponent,
            "rectified": self.rectified,
        }

    def circuit(self, x: Tensor) -> Circuit:
        """The circuits that inputs ``x`` of shape ``(*, input_size)`` drive, one per input.

        Raises:
            TypeError: ``x`` is no floating-point tensor.
            ValueError: Its last dimension, dtype or device does not fit, or it is not finite.
        """
        self._check_input(x)
        circuit = self._circuit(x)
        self._check_values(x, circuit)
        return circuit

    def _circuit(self, x: Tensor) -> Circuit:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.input_weight.dtype)
            drive = nn.functional.linear(x, self.input_weight)
            baseline = self.baseline_gain
            if self.gain_weight is None:
                gated = baseline * (_unit_length(drive) if self.normalize_drive else drive)
            else:
                logit = nn.functional.linear(x, self.gain_weight)
                gated = self._gate(drive, logit)
            # In half precision small numbers would vanish in the power.
            amplitude = at_least_single(baseline) * at_least_single(self.semisaturation)
            inhibitory_drive = amplitude.pow(self.exponent)
            return Circuit.with_unchecked_values(
                Problem(
                    gated,
                    inhibitory_drive,
                    self.recurrent_weight,
                    self.normalization_weight,
                    self.tau_y,
                    self.tau_a,
                    self.exponent,
                    self.rectified,
                )
            )

    @torch.compiler.disable(recursive=True)
    def steady_state(self, x: Tensor) -> SteadyState:
        """Steady states for inputs ``x`` of shape ``(*, input_size)``, with their diagnostics."""
        self._check_input(x)
        circuit = self._circuit(x)
        options = (self.solver, self.tol, self.max_iter, self.on_failure, self.verify_stability)
        if not self._waits_for_values(circuit):
            self._check_values(x, circuit)
            return circuit.steady_state(*options, self.backend)
        try:
            return circuit.steady_state(*options, self.backend)
        except ValueError:
            # It names what the circuit got: say whose value that was.
            self._check_values(x, circuit)
            raise

    def _waits_for_values(self, circuit: Circuit) -> bool:
        """Whether a look at values would wait for a device, whose kernels do without it."""
        if circuit.input_drive.device.type == "cpu":
            return False
        return circuit.backend_for(self.solver, self.backend).backend == "cuda"

    @property
    def backend(self) -> str:
        """By what steady states, the gated input drive and the bound of ``Wr`` are computed."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = check_choice("backend", name, BACKENDS)
        set_bounds_backend(self, self._backend)

    def _gate(self, drive: Tensor, logit: Tensor) -> Tensor:
        """``sigmoid(logit)`` times the drive, of length 1 with ``normalize_drive``."""
        if not self.normalize_drive:
            return logit.sigmoid() * drive
        choice = gated_drive.choose(self.backend, drive, logit)
        return gated_drive.gated_drive(drive, logit, _gated_drive, choice.backend)

    def backend_for(self, x: Tensor) -> Choice[str]:
        """Which backend solves for inputs ``x``, and why; also of parts that another one computes.

        Raises:
            RuntimeError: The backend named at construction does not apply.
        """
        self._check_input(x)
        circuit = self._circuit(x)
        whole = circuit.backend_for(self.solver, self.backend)
        parts = {}
        if self.gain_weight is not None and self.normalize_drive:
            # The drive and the logit of the gain are alike in all that counts.
            like = circuit.input_drive
            parts["input drive"] = gated_drive.choose(self.backend, like, like)
        return with_parts(whole, parts | bound_choice(self))

    def forward(self, x: Tensor) -> Tensor:
        """Firing rates ``(*, hidden_size)`` of the principal neurons for ``x`` ``(*, input_size)``.

        In the dtype of the parameters; under autocast that of the solve, float32.

        Raises:
            NotImplementedError: ``torch.export`` or ``torch.jit.trace`` records the call.
        """
        refuse_export()
        rates = self.steady_state(x).rates
        return rates.to(self.input_weight.dtype)

    def extra_repr(self) -> str:
        parts = [
            f"{self.input_size}, {self.hidden_size}, recurrence={self.recurrence!r}",
            f"input_gain={self.input_gain!r}",
        ]
        for name, default in (
            ("exponent", 2.0),
            ("rectified", False),
            ("solver", "auto"),
            ("backend", "auto"),
        ):
            if (value := getattr(self, name)) != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)

    def _check_values(self, x: Tensor, circuit: Circuit) -> None:
        """Raise ValueError for values that no circuit can have; the message says whose they are."""
        check_finite("x", x)
        check_all_finite(self.free_parameters())
        check_positive("semisaturation", self.semisaturation)
        circuit.check_values()

    def _check_input(self, x: Tensor) -> None:
        as_float_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {self.input_size})")
        weight = self.input_weight
        if x.device != weight.device:
            raise ValueError(f"x: got device {x.device}, expected {weight.device} as the layer")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x: got {x.dtype}, expected {weight.dtype} as the layer's parameters")


def _time_constant(name: str, tau: float | Tensor, n: int) -> float | list[float] | None:
    """The values of a time constant, one or ``n``; None where a tensor on meta has none."""
    if not isinstance(tau, Tensor):
        return check_number(name, tau, low=0.0, open_low=True)
    if tau.shape not in ((), (n,)):
        raise ValueError(f"{name}: got shape {tuple(tau.shape)}, expected a number or ({n},)")
    check_positive(name, as_float_tensor(name, tau))
    return None if tau.is_meta else tau.tolist()


def _gated_drive(drive: Tensor, logit: Tensor) -> Tensor:
    return logit.sigmoid() * _unit_length(drive)


def _unit_length(vector: Tensor) -> Tensor:
    """``vector`` scaled to Euclidean length 1; a zero vector stays zero, with derivative zero."""
    # Scaled first, so that the squares neither overflow nor underflow.
    largest = vector.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    # The length of a zero vector has no derivative; a stand-in keeps its NaN out of second ones.
    vector = torch.where(zero, 1.0, vector / torch.where(zero, 1.0, largest))
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return torch.where(zero, 0.0, vector / length)
