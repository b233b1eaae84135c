"""One step of the circuit in time, as a module that holds the parameters."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deq_organics.checks import (
    check_bool,
    check_choice,
    check_number,
    check_positive_int,
)
from deq_organics.constrained import HoldsConstrained
from deq_organics.parametrizations import Interval, SingularValueBound, UnitInterval
from deq_organics.saved_options import Option, SavesOptions

from .arguments import check_input, check_state
from .bounded import SMALLEST_STEP, choose_box
from .dynamics import GainParameters, Model, Parameters, State, euler_step
from .precision import full_precision, state_type

__all__ = ["ORGaNICsCell"]

RECURRENCES = ("bounded", "spectral", "unconstrained", "identity")
INPUT_GAINS = ("dynamic", "fixed")
RECTIFIERS = ("before_weights", "after_weights")

# Largest entries of W where it starts: at 1 the slope of the sigmoid would be 0.
_SMALLEST_START, _LARGEST_START, _DIAGONAL_START = 0.01, 0.99, 0.95
# Of its maximum a step that is not learned: sigmoid(1).
_FIXED_STEP = 1.0 / (1.0 + math.exp(-1.0))


class ORGaNICsCell(SavesOptions, HoldsConstrained):
    r"""One explicit Euler step of an ORGaNICs circuit that an input drives.

    With ``z = relu(Wzx x)`` the rectified circuit (Eq. 87) with dynamic input gains (Eq. 17) is::

        tau_y y'   = -y + b z + (1 - a+) Wr relu(y)
        tau_a a'   = -a + (b0 sigma)^2 + W (relu(y)^2 relu(a))
        tau_b b'   = -b + sigmoid(Wbx x + Wby y + Wba a)
        tau_b0 b0' = -b0 + sigmoid(Wb0x x + Wb0y y + Wb0a a)

    with ``a+ = sqrt(relu(a))``; a step adds ``dt / tau`` times the right-hand side. The ratios
    ``dt / tau`` lie between 0 and a maximum, one per neuron.

    Parameters in half precision (bfloat16, float16) are stepped in float32: a state of so few
    digits would lose the small increments of a step. The state is float32 then, in and out.

    Args:
        input_size: Number of input features.
        hidden_size: Number ``n`` of excitatory, and of inhibitory, neurons.
        rectified: Use the rectified model; else the main model (Eq. 1/15) with ``z = Wzx x``.
        learn_time_constants: Learn ``dt / tau = max * sigmoid(p)`` from ``p ~ N(0, 1)``; else
            they are fixed at ``p = 1``.
        recurrence: Recurrent weights ``Wr``: ``"bounded"`` (learned, with ``Wzx`` and ``W``
            constrained too, so that no state ever leaves :meth:`state_bound`), ``"spectral"``
            (learned, largest singular value at most 1), ``"unconstrained"`` (learned) or
            ``"identity"`` (fixed). Only the first keeps the states bounded.
        input_gain: ``"dynamic"`` (Eq. 17) or ``"fixed"`` (``b`` and ``b0`` keep the values of
            the initial state).
        rectifier: ``"before_weights"``, ``Wr relu(y)`` as in Eq. 87, or ``"after_weights"``,
            ``relu(Wr y)`` as in the published code; the main model has no rectifier.
        semisaturation: ``sigma``, positive, not learned.
        input_bound: With ``recurrence="bounded"``, the largest ``|x|`` for which the states stay
            bounded; 1 if None.
        max_step_y: Largest ``dt / tau_y``, in (0, 1].
        max_step_a: Largest ``dt / tau_a``, in (0, 1].
        max_step_b: Largest ``dt / tau_b`` and ``dt / tau_b0``, in (0, 1].
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    The state dict holds the options that shape the cell's function; ``load_state_dict`` refuses
    other ones.

    Attributes:
        input_weight: ``Wzx``, ``(hidden_size, input_size)``.
        recurrent_weight: ``Wr``, ``(hidden_size, hidden_size)``, or None for the identity.
        normalization_weight: ``W``, ``(hidden_size, hidden_size)``, entries in (0, 1).
        gain_weight_x, gain_weight_y, gain_weight_a: ``Wbx``, ``Wby``, ``Wba`` of Eq. 17 for ``b``.
        baseline_gain_weight_x, baseline_gain_weight_y, baseline_gain_weight_a: Those for ``b0``.
        step_y, step_a, step_b, step_b0: ``dt / tau``, ``(hidden_size,)``, dimensionless.
        semisaturation: ``sigma``, ``(hidden_size,)``.

    Shape:
        - Input: ``(B, input_size)`` or ``(input_size,)``.
        - State, in and out: four tensors ``(B, hidden_size)`` or ``(hidden_size,)``, of the
          parameters' type but at least float32.
    """

    former_names: ClassVar[Mapping[str, str]] = {"input_gains": "input_gain"}

    input_weight: Tensor
    recurrent_weight: Tensor | None
    normalization_weight: Tensor
    semisaturation: Tensor
    step_y: Tensor
    step_a: Tensor
    step_b: Tensor
    step_b0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        rectified: bool = True,
        learn_time_constants: bool = True,
        recurrence: str = "bounded",
        input_gain: str = "dynamic",
        rectifier: str = "before_weights",
        semisaturation: float = 1.0,
        input_bound: float | None = None,
        max_step_y: float = 0.02,
        max_step_a: float = 0.005,
        max_step_b: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.hidden_size = check_positive_int("hidden_size", hidden_size)
        rectified = check_bool("rectified", rectified)
        self.learn_time_constants = check_bool("learn_time_constants", learn_time_constants)
        self.recurrence = check_choice("recurrence", recurrence, RECURRENCES)
        self.input_gain = check_choice("input_gain", input_gain, INPUT_GAINS)
        self.rectifier = check_choice("rectifier", rectifier, RECTIFIERS)
        if rectifier == "after_weights" and not rectified:
            raise ValueError(
                "rectifier: got 'after_weights' with rectified=False, expected 'before_weights': "
                "the main model has no rectifier"
            )
        self.model = Model(rectified, rectifier == "after_weights")
        self._sigma = check_number("semisaturation", semisaturation, low=0.0, open_low=True)
        self.max_steps = {
            name: check_number(f"max_step_{name}", value, low=0.0, high=1.0, open_low=True)
            for name, value in (("y", max_step_y), ("a", max_step_a), ("b", max_step_b))
        }
        factory: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        if not factory["dtype"].is_floating_point:
            raise TypeError(f"dtype: got {dtype}, expected a floating-point type")

        self._step_scale = 1.0
        # The buffer may round sigma up.
        rounded = torch.tensor(self._sigma, dtype=factory["dtype"], device="cpu").item()
        self.box = choose_box(recurrence, rounded, input_bound)

        n = self.hidden_size
        self.input_weight = nn.Parameter(torch.zeros(n, self.input_size, **factory))
        self.normalization_weight = nn.Parameter(torch.full((n, n), 0.5 / n, **factory))
        if recurrence == "identity":
            self.register_parameter("recurrent_weight", None)
        else:
            self.recurrent_weight = nn.Parameter(torch.zeros(n, n, **factory))
        for name in self._gain_weight_names():
            columns = self.input_size if name.endswith("x") else n
            self.register_parameter(name, nn.Parameter(torch.empty(n, columns, **factory)))
        self.register_buffer("semisaturation", torch.full((n,), self._sigma, **factory))
        for name, largest in self._largest_steps().items():
            fixed = torch.full((n,), largest * _FIXED_STEP, **factory)
            if self.learn_time_constants:
                self.register_parameter(name, nn.Parameter(fixed))
                self.constrain(name, Interval(self._smallest_step(largest), largest, name))
            else:
                self.register_buffer(name, fixed)
        if self.box is not None:
            self.box.constrain(self, nonnegative=rectified and not self.model.after_weights)
        else:
            self.constrain("normalization_weight", UnitInterval("normalization_weight"))
        if recurrence == "spectral":
            self.constrain("recurrent_weight", SingularValueBound(1.0, "recurrent_weight"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, by the paper's recipe for sequences.

        ``Wzx`` Kaiming-uniform scaled to spectral norm 1, ``Wr`` orthogonal, ``W`` uniform in
        (0, 1) with a diagonal near 1, the gains' weights Kaiming-uniform, and learned
        ``dt / tau = max * sigmoid(p)`` with ``p ~ N(0, 1)``. ``sigma`` and ``dt / tau`` that are
        not learned get the constructor's values. In a bounded cell ``Wr`` is diagonal, and the
        rows of ``Wzx``, ``Wr`` and ``W`` are scaled to nearly their bounds.
        """
        with torch.no_grad():
            drive = nn.init.kaiming_uniform_(torch.empty_like(self.input_weight), a=math.sqrt(5))
            recurrent = _orthogonal_like(self.normalization_weight)
            pool = torch.empty_like(self.normalization_weight)
            pool.uniform_(_SMALLEST_START, _LARGEST_START).fill_diagonal_(_DIAGONAL_START)
            if self.box is None:
                drive /= torch.linalg.matrix_norm(drive.to(_at_least_single(drive.dtype)), 2)
            else:
                recurrent.zero_().fill_diagonal_(1.0)
                drive, recurrent, pool = self.box.start(drive, recurrent, pool)
            self.fill("input_weight", drive)
            if self.recurrence != "identity":
                self.fill("recurrent_weight", recurrent)
            self.fill("normalization_weight", pool)
            for name in self._gain_weight_names():
                nn.init.kaiming_uniform_(getattr(self, name), a=math.sqrt(5))
            self.semisaturation.fill_(self._sigma)
            for name, largest in self._largest_steps().items():
                like, smallest = getattr(self, name), self._smallest_step(largest)
                if self.learn_time_constants:
                    part = torch.randn_like(like).sigmoid()
                    self.fill(name, smallest + (largest - smallest) * part)
                else:
                    like.fill_(largest * _FIXED_STEP)

    def shaping_options(self) -> dict[str, Option]:
        """The options that the state dict keeps: what its tensors alone do not tell."""
        options: dict[str, Option] = {
            "rectified": self.model.rectified,
            "learn_time_constants": self.learn_time_constants,
            "recurrence": self.recurrence,
            "input_gain": self.input_gain,
            "rectifier": self.rectifier,
        }
        if self.box is not None:
            # The bounds of the weights' rows depend on both.
            options |= {"input_bound": self.box.input_bound, "semisaturation": self._sigma}
        if self.learn_time_constants:
            # Else the steps themselves are in the state dict.
            options |= {f"max_{name}": value for name, value in self._largest_steps().items()}
        return options

    @property
    def step_scale(self) -> float:
        """A factor on every ``dt / tau`` of a step, 1 at first; not part of ``state_dict()``.

        With ``k`` the cell takes ``k`` times longer steps through the same continuous circuit, as
        for a sequence of which ``k`` elements are averaged to one. ``dt / tau`` stays at most 1.
        """
        return self._step_scale

    @step_scale.setter
    def step_scale(self, value: float) -> None:
        longest = 1.0 / max(self._largest_steps().values())
        self._step_scale = check_number("step_scale", value, low=0.0, high=longest, open_low=True)

    def parameters_of_step(self) -> Parameters:
        """The constrained parameters, each computed once: what the backends work with.

        They are of the state's type: float32 for parameters in half precision.
        """
        gain = baseline = None
        if self.input_gain == "dynamic":
            gain, baseline = (
                GainParameters(
                    self._exact(f"{prefix}_x"),
                    self._exact(f"{prefix}_y"),
                    self._exact(f"{prefix}_a"),
                    self.step_scale * self._exact(step),
                )
                for prefix, step in (("gain_weight", "step_b"), ("baseline_gain_weight", "step_b0"))
            )
        recurrent = None if self.recurrence == "identity" else self._exact("recurrent_weight")
        return Parameters(
            self._exact("input_weight"),
            recurrent,
            self._exact("normalization_weight"),
            self._exact("semisaturation"),
            self.step_scale * self._exact("step_y"),
            self.step_scale * self._exact("step_a"),
            gain,
            baseline,
        )

    def rest_state(self, batch_size: int | None = None) -> State:
        """The default initial state, ``(batch_size, hidden_size)`` or ``(hidden_size,)``.

        ``y = 0``, ``b = b0 = 1/2`` and ``a = (b0 sigma)^2``: where ``y`` and ``a`` rest without
        an input, and the gains at ``sigmoid(0)``.
        """
        sigma = self._exact("semisaturation")
        half = torch.full_like(sigma, 0.5)
        return _repeat(
            State(torch.zeros_like(half), (half * sigma).square(), half, half), batch_size
        )

    def draw_state(
        self, batch_size: int | None = None, *, generator: torch.Generator | None = None
    ) -> State:
        """A random initial state by the published recipe, the same for the whole batch.

        ``y``, ``a`` and ``b`` uniform in (0, 1), ``y`` scaled to length 1, ``b0 = 1``.
        """
        like = self._exact("semisaturation")
        y, a, b = torch.rand(
            3, self.hidden_size, generator=generator, dtype=like.dtype, device=like.device
        )
        length = torch.linalg.vector_norm(y).clamp_min(torch.finfo(y.dtype).tiny)
        return _repeat(State(y / length, a, b, torch.ones_like(b)), batch_size)

    def state_bound(self, input_bound: float = 1.0) -> State:
        """The largest ``|y|``, ``|a|``, ``b`` and ``b0`` that any sequence can reach, each ``()``.

        Proved (docs/theory.md) for every value of the parameters, every input with ``|x| <=
        input_bound``, every length, and every initial state within the bound, whose ``b`` and
        ``b0`` are not negative; rounding included.

        Raises:
            ValueError: The cell is not a bounded one, or not for inputs that large; or its buffers
                were changed to values that it is not made for; or its steps are so small that
                rounding may outgrow them (in single precision, a ``max_step_y`` below 0.0096 or a
                ``max_step_a`` below 0.0026).
        """
        if self.box is None:
            raise ValueError(
                f"recurrence: got {self.recurrence!r}, expected 'bounded': "
                "nothing bounds the states of other cells"
            )
        sigma, steps = self._exact("semisaturation"), self._largest_steps()
        self.box.check(input_bound, sigma, {name: self._range(name) for name in steps})
        return State(*(torch.full_like(sigma[0], top) for top in self.box.largest))

    def forward(self, x: Tensor, state: State | None = None) -> State:
        """The state one step later, for input ``x`` and ``state`` (:meth:`rest_state` if None).

        Raises:
            TypeError: ``x`` or ``state`` is not of the right type.
            ValueError: A shape, dtype or device does not fit, or a value is not finite.
        """
        check_input(x, self.input_weight, (1, 2), "(B, {0}) or ({0},)")
        batch = x.shape[0] if x.ndim == 2 else None
        if state is None:
            state = self.rest_state(batch)
        else:
            state = check_state(state, (*x.shape[:-1], self.hidden_size), self.input_weight)
        with full_precision(x.device):
            x = x.to(state.y.dtype)
            return euler_step(self.model, self.parameters_of_step(), x, state)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name, value, default in (
            ("rectified", self.model.rectified, True),
            ("learn_time_constants", self.learn_time_constants, True),
            ("recurrence", self.recurrence, RECURRENCES[0]),
            ("input_gain", self.input_gain, INPUT_GAINS[0]),
            ("rectifier", self.rectifier, RECTIFIERS[0]),
        ):
            if value != default:
                parts.append(f"{name}={value!r}")
        if self.box is not None and self.box.input_bound != 1.0:
            parts.append(f"input_bound={self.box.input_bound:g}")
        return ", ".join(parts)

    def _exact(self, name: str) -> Tensor:
        """A weight or buffer in the state's precision, its constraint computed in that too."""
        dtype = state_type(self.input_weight.dtype)
        constrained = self._constrained(name)
        if constrained is None or constrained.original.dtype == dtype:
            return getattr(self, name).to(dtype)
        return constrained.constraint(constrained.original.to(dtype))

    def _range(self, name: str) -> tuple[float, float]:
        """The smallest and the largest value that a ``dt / tau`` has, or can be learned to have."""
        if self.learn_time_constants:
            largest = self._largest_steps()[name]
            smallest = self._smallest_step(largest)
        else:
            smallest, largest = (float(end) for end in getattr(self, name).aminmax())
        return self.step_scale * smallest, self.step_scale * largest

    def _smallest_step(self, largest: float) -> float:
        """The lower end of a learned ``dt / tau``: rounding must not outgrow a bounded step."""
        return 0.0 if self.box is None else SMALLEST_STEP * largest

    def _gain_weight_names(self) -> list[str]:
        if self.input_gain == "fixed":
            return []
        return [f"{gain}_weight_{part}" for gain in ("gain", "baseline_gain") for part in "xya"]

    def _largest_steps(self) -> dict[str, float]:
        largest = {"step_y": self.max_steps["y"], "step_a": self.max_steps["a"]}
        if self.input_gain == "dynamic":
            largest |= {"step_b": self.max_steps["b"], "step_b0": self.max_steps["b"]}
        return largest


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The type to decompose matrices in: LAPACK knows no half precision."""
    return torch.promote_types(dtype, torch.float32)


def _orthogonal_like(weight: Tensor) -> Tensor:
    dtype = _at_least_single(weight.dtype)
    return nn.init.orthogonal_(torch.empty_like(weight, dtype=dtype)).to(weight.dtype)


def _repeat(state: State, batch_size: int | None) -> State:
    if batch_size is None:
        return state
    return State(*(tensor.expand(batch_size, -1).clone() for tensor in state))
