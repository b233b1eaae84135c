"""A circuit of any kind as one vector field: its parts side by side, and its derivative."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_finite, physical
from ..equations import full_precision
from .protocol import DynamicalCircuit, Linearized, is_circuit

__all__ = ["Derivative", "System"]


class System:
    """The equations ``dx/dt = f(x)`` of states ``x`` ``(..., N)``, all parts of a circuit.

    Raises:
        TypeError: The circuit lacks something, or a tensor of its is none.
        ValueError: A shape or a dtype does not fit; the message names what.
    """

    def __init__(self, circuit: Any) -> None:
        if not is_circuit(circuit):
            raise TypeError(
                f"circuit: got {type(circuit).__name__}, expected a circuit with parts, rest() and "
                "vector_field(*parts)"
            )
        self.circuit: DynamicalCircuit = circuit
        self.names = tuple(circuit.parts)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"circuit.parts: got {self.names}, expected names that differ")
        rest = self._checked("circuit.rest()", circuit.rest())
        self.sizes = tuple(part.shape[-1] for part in rest)
        if 0 in self.sizes:
            raise ValueError(
                f"circuit.rest(): got parts of sizes {self.sizes}, expected no empty one"
            )
        self.dtype, self.device = rest[0].dtype, rest[0].device
        for name, part in zip(self.names, rest, strict=True):
            check_finite(f"circuit.rest(), {name}", part)
        with full_precision(rest[0]):
            slopes = self._checked("circuit.vector_field", circuit.vector_field(*rest))
        for name, part, slope in zip(self.names, rest, slopes, strict=True):
            if slope.shape[-1] != part.shape[-1] or slope.dtype != self.dtype:
                raise ValueError(
                    f"circuit.vector_field: got {slope.dtype} of shape {tuple(slope.shape)} for "
                    f"{name}, expected {self.dtype} of shape (..., {part.shape[-1]})"
                )
        leads = [part.shape[:-1] for part in (*rest, *slopes)]
        try:
            self.batch = torch.broadcast_shapes(*leads)
        except RuntimeError:
            raise ValueError(
                f"circuit: got leading dimensions {[tuple(lead) for lead in leads]} of its parts, "
                "expected ones that broadcast together"
            ) from None
        self.rest = self.join(rest)

    def _checked(self, name: str, parts: Any) -> list[Tensor]:
        """The parts as they are; there has to be a tensor for each name."""
        if isinstance(parts, Tensor) and len(self.names) == 1:
            raise TypeError(f"{name}: got a Tensor, expected a tuple with one of them")
        if not isinstance(parts, Sequence) or len(parts) != len(self.names):
            count = f"{len(parts)} parts" if isinstance(parts, Sequence) else type(parts).__name__
            raise ValueError(f"{name}: got {count}, expected {len(self.names)}: {self.names}")
        for part_name, part in zip(self.names, parts, strict=True):
            as_float_tensor(f"{name}, {part_name}", part)
            if part.ndim == 0:
                raise ValueError(f"{name}, {part_name}: got a number, expected (..., n)")
        return list(parts)

    @property
    def width(self) -> int:
        """``N``, of all parts together."""
        return sum(self.sizes)

    def split(self, state: Tensor) -> tuple[Tensor, ...]:
        """A state ``(..., N)`` as its parts."""
        return state.split(self.sizes, -1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts as one state, with the circuits' leading dimensions or more."""
        lead = torch.broadcast_shapes(self.batch, *(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)

    def field(self, state: Tensor) -> Tensor:
        """``f``, ``(..., N)``, at states ``(..., N)``."""
        with full_precision(state):
            return self.join(self.circuit.vector_field(*self.split(state)))

    def jacobian(self, state: Tensor) -> Tensor:
        """The derivative of ``f``, ``(..., N, N)``, differentiable itself."""
        shape = (*state.shape, self.width)
        parts = self.split(state)
        with full_precision(state):
            analytic = getattr(self.circuit, "jacobian", None)
            if analytic is not None:
                found: Tensor = analytic(*parts)
                if tuple(found.shape[-2:]) != shape[-2:]:
                    raise ValueError(
                        f"circuit.jacobian: got shape {tuple(found.shape)}, expected {shape}"
                    )
                return found.expand(shape)
            identity = self._directions(state)
            if hasattr(self.circuit, "linearize"):
                return self.linearize(state).product(identity).movedim(0, -1)
            # By rows: this differentiates in every mode, where columns would not in forward mode.
            rows: Tensor = _pull(self.field, state.expand(identity.shape), identity)
            return rows.movedim(0, -2)

    def linearize(self, state: Tensor) -> Linearized:
        """Products with the derivative of ``f`` at a state and with its transpose."""
        given = getattr(self.circuit, "linearize", None)
        return Derivative(self, state) if given is None else given(*self.split(state))

    def _directions(self, state: Tensor) -> Tensor:
        """All ``N`` unit vectors, ``(N, ..., N)``, for states ``(..., N)``."""
        width = self.width
        identity = torch.eye(width, dtype=state.dtype, device=state.device)
        return identity.reshape(width, *[1] * (state.ndim - 1), width).expand(width, *state.shape)

    def plain(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """``values`` without a gradient or a transform, for decisions that depend on them.

        Raises:
            NotImplementedError: ``torch.vmap`` goes over the circuit's parameters.
        """
        found = physical(values)
        if tuple(found.shape) != tuple(shape):
            raise NotImplementedError(
                "a steady state of a circuit of this kind cannot be mapped over by torch.vmap: "
                "give its parameters leading dimensions instead"
            )
        return found


class Derivative:
    """The derivative of a system's equations at a state, by ``torch.func``."""

    def __init__(self, system: System, state: Tensor) -> None:
        self._system, self._state = system, state

    def product(self, direction: Tensor) -> Tensor:
        """``J v``, ``(..., N)``."""
        state = self._state.expand_as(direction)
        pushed: Tensor = torch.func.jvp(self._system.field, (state,), (direction,))[1]
        return pushed

    def transposed(self, direction: Tensor) -> Tensor:
        """``J^T v``, ``(..., N)``."""
        return _pull(self._system.field, self._state.expand_as(direction), direction)


def _pull(field: Callable[[Tensor], Tensor], state: Tensor, direction: Tensor) -> Tensor:
    """``J^T v`` of a vector field at a state."""
    found: Any = torch.func.vjp(field, state)
    pulled: Tensor = found[1](direction)[0]
    return pulled
