"""The circuit in discrete time: its state, its parameters and one explicit Euler step.

The vector field is that of :mod:`deq_organics.equations`; nothing of it is repeated here. Every
function is pure and broadcasts over leading dimensions, the weights' included: one call can step
a batch of different circuits.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from deq_organics import equations

__all__ = [
    "GainParameters",
    "Model",
    "Parameters",
    "State",
    "euler_step",
    "gated_input_drive",
    "steps",
    "vector_field",
]


class State(NamedTuple):
    """State of the circuit, four dimensionless tensors of one shape ``(..., n)``."""

    y: Tensor
    """Membrane potentials of the excitatory (principal) neurons."""
    a: Tensor
    """Membrane potentials of the inhibitory neurons."""
    b: Tensor
    """Gains of the input drive."""
    b0: Tensor
    """Gains of the semisaturation."""


# By this name torch.export.save() writes it into files.
_pytree._register_namedtuple(State, serialized_type_name="recurrent.State")


@dataclass(frozen=True)
class Model:
    """Which of the paper's circuits is stepped."""

    rectified: bool = True
    """Eq. 87, with ``z = relu(Wzx x)``; else the main model, Eq. 1/15, with ``z = Wzx x``."""
    after_weights: bool = False
    """Rectify the recurrent drive after the weights, as the published code does."""


class GainParameters(NamedTuple):
    """Parameters of Eq. 17 for one of the two gains."""

    weight_x: Tensor
    """``Wbx``, ``(n, input_size)``."""
    weight_y: Tensor
    """``Wby``, ``(n, n)``."""
    weight_a: Tensor
    """``Wba``, ``(n, n)``."""
    step: Tensor
    """``dt / tau_b``, ``(n,)``, dimensionless."""


class Parameters(NamedTuple):
    """Everything that a step depends on besides input and state, after all constraints."""

    input_weight: Tensor
    """``Wzx``, ``(n, input_size)``."""
    recurrent_weight: Tensor | None
    """``Wr``, ``(n, n)``; None is the identity."""
    normalization_weight: Tensor
    """``W >= 0``, ``(n, n)``."""
    semisaturation: Tensor
    """``sigma > 0``, ``(n,)``."""
    step_y: Tensor
    """``dt / tau_y``, ``(n,)``, dimensionless."""
    step_a: Tensor
    """``dt / tau_a``, ``(n,)``, dimensionless."""
    gain: GainParameters | None
    """Those of ``b``; None keeps the gains at their initial values."""
    baseline_gain: GainParameters | None
    """Those of ``b0``; None together with ``gain``."""

    def to(self, dtype: torch.dtype) -> "Parameters":
        """The same in another precision."""

        def cast(value: Tensor | GainParameters | None) -> Any:
            if isinstance(value, GainParameters):
                return GainParameters(*map(cast, value))
            return None if value is None else value.to(dtype)

        return Parameters(*map(cast, self))


def gated_input_drive(model: Model, parameters: Parameters, x: Tensor, gain: Tensor) -> Tensor:
    """``b z`` with the input drive ``z = Wzx x``, which the rectified model keeps nonnegative."""
    return gain * equations.drive(equations.matvec(parameters.input_weight, x), model.rectified)


def vector_field(model: Model, parameters: Parameters, x: Tensor, state: State) -> State:
    """``tau d(state)/dt`` for input ``x`` ``(..., input_size)``: Eq. 1/15 or 87, and Eq. 17."""
    y, a, b, b0 = state
    field_y, field_a = equations.residual(
        y,
        a,
        gated_input_drive(model, parameters, x, b),
        equations.power(b0 * parameters.semisaturation, 2.0),
        parameters.recurrent_weight,
        parameters.normalization_weight,
        rectified=model.rectified,
        after_weights=model.after_weights,
    )
    if parameters.gain is None or parameters.baseline_gain is None:
        return State(field_y, field_a, torch.zeros_like(b), torch.zeros_like(b0))
    field_b, field_b0 = (
        equations.input_gain_residual(gain, x, y, a, part.weight_x, part.weight_y, part.weight_a)
        for gain, part in ((b, parameters.gain), (b0, parameters.baseline_gain))
    )
    return State(field_y, field_a, field_b, field_b0)


def steps(parameters: Parameters) -> tuple[Tensor | float, ...]:
    """``dt / tau`` of ``y``, ``a``, ``b`` and ``b0``; 0 for gains that stay as they are."""
    gains = (parameters.gain, parameters.baseline_gain)
    return (
        parameters.step_y,
        parameters.step_a,
        *(0.0 if part is None else part.step for part in gains),
    )


def euler_step(model: Model, parameters: Parameters, x: Tensor, state: State) -> State:
    """The state after one explicit Euler step, ``state + (dt / tau) field(state)``."""
    field = vector_field(model, parameters, x, state)
    return State(
        *(
            value + step * slope
            for value, step, slope in zip(state, steps(parameters), field, strict=True)
        )
    )
