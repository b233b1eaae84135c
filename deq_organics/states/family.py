"""Circuits of one parameter as a family of vector fields."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..circuit import Circuit
from ..problem import Problem
from ..steady_state.methods.acceptance import is_within_reach, natural_sizes

__all__ = ["CircuitFamily", "stack"]

# Of the range of the parameter: the step of a difference. Its square, and the rounding by it, are
# what the derivative misses.
_DIFFERENCE = 1e-6
# Part of its natural size that a response counts as, where it is smaller.
_SMALLEST = 1e-2
_KEPT = 64


class CircuitFamily:
    """The :class:`.arclength.Family` of what ``make_circuit`` makes of values in a range."""

    def __init__(self, make_circuit: Callable[[float], Circuit], low: float, high: float) -> None:
        self._make, self._low, self._high = make_circuit, low, high
        self._step = _DIFFERENCE * (high - low)
        self._known: dict[float, Problem] = {}
        first = self._circuit(low)
        self.n, self.rectified = first.n, first.rectified
        self.exponent = float(first.exponent)

    def _circuit(self, value: float) -> Circuit:
        circuit: Any = self._make(value)
        if not isinstance(circuit, Circuit):
            raise TypeError(
                f"make_circuit: it returned {type(circuit).__name__}, expected a Circuit"
            )
        dtype, shape = circuit.input_drive.dtype, circuit.batch_shape
        if dtype != torch.float64:
            raise ValueError(f"make_circuit: it returned {dtype}, expected torch.float64")
        if shape.numel() != 1:
            raise ValueError(
                f"make_circuit: it returned circuits of shape {tuple(shape)}, expected one circuit"
            )
        if isinstance(circuit.exponent, Tensor):
            raise ValueError(
                "make_circuit: it returned a circuit whose exponent is a tensor, expected a number"
            )
        return circuit

    def problem(self, value: float) -> Problem:
        """The circuit at a value, a batch of one."""
        if value not in self._known:
            circuit = self._circuit(value)
            own = (circuit.n, circuit.exponent, circuit.rectified)
            if hasattr(self, "rectified") and own != (self.n, self.exponent, self.rectified):
                raise ValueError(
                    f"make_circuit: at {value:g} it returned (n, exponent, rectified) = {own}, "
                    f"expected {(self.n, self.exponent, self.rectified)} as at {self._low:g}"
                )
            if len(self._known) == _KEPT:
                del self._known[next(iter(self._known))]
            self._known[value] = circuit.flatten()
        return self._known[value]

    def flow(self, state: Tensor, value: float) -> Tensor:
        return self.problem(value).flow(state.unsqueeze(0))[0]

    def jacobian(self, state: Tensor, value: float) -> Tensor:
        return self.problem(value).jacobian(*state.unsqueeze(0).chunk(2, -1))[0]

    def by_value(self, state: Tensor, value: float) -> Tensor:
        h = self._step
        if self._low + h <= value <= self._high - h:
            return (self.flow(state, value + h) - self.flow(state, value - h)) / (2.0 * h)
        h = h if value < self._low + h else -h
        near, far = self.flow(state, value + h), self.flow(state, value + 2.0 * h)
        return (4.0 * near - far - 3.0 * self.flow(state, value)) / (2.0 * h)

    def sizes(self, state: Tensor, value: float) -> Tensor:
        y, a = state.chunk(2, -1)
        natural = natural_sizes(self.problem(value))[0]
        return torch.cat([torch.maximum(y.abs().amax(), _SMALLEST * natural).expand_as(y), a])

    def is_state(self, state: Tensor) -> bool:
        y, a = state.unsqueeze(0).chunk(2, -1)
        if not torch.isfinite(state).all() or not (a > 0).all():
            return False
        return bool(is_within_reach(next(iter(self._known.values())), y, a).all())


def stack(problems: list[Problem]) -> Problem:
    """Circuits of one, each with as many neurons, as one batch."""
    first = problems[0]
    fields: dict[str, Any] = {}
    for name in ("input_drive", "inhibitory_drive", "tau_y", "tau_a"):
        parts = [getattr(problem, name).expand_as(problem.input_drive) for problem in problems]
        fields[name] = torch.cat(parts)
    n = first.input_drive.shape[-1]
    if any(problem.recurrent_weight is not None for problem in problems):
        matrices = [problem.recurrent_matrix().expand(1, n, n) for problem in problems]
        fields["recurrent_weight"] = torch.cat(matrices)
    fields["normalization_weight"] = torch.cat(
        [problem.normalization_weight.expand(1, n, n) for problem in problems]
    )
    return first._replace(**fields)
