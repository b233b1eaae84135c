"""What the library asks of a circuit of any kind."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["DynamicalCircuit", "Linearized"]


@runtime_checkable
class DynamicalCircuit(Protocol):
    """A batch of circuits of any kind: differential equations of a state made of named parts.

    Its state is a tensor for each part, ``(..., n_k)``; all parts side by side are ``(..., N)``.
    Leading dimensions are circuits, which do not depend on each other. Parameters are tensors that
    the circuit holds; all results are differentiable by them.

    A circuit may also have these methods, which are used where they are there. What is missing
    comes from ``torch.func``:

    - ``jacobian(*parts)``: the derivative of the vector field, ``(..., N, N)``.
    - ``linearize(*parts)``: a :class:`Linearized`.
    - ``to(dtype)``: the same circuits in another dtype. Verdicts on stability are then computed in
      double precision throughout.
    """

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts of the state, in order."""

    def rest(self) -> Sequence[Tensor]:
        """Where the dynamics start if nothing else is said: each part ``(..., n_k)``."""

    @property
    def vector_field(self) -> Callable[..., Sequence[Tensor]]:
        """``vector_field(*parts)``, the derivatives by time of all parts, in their order.

        Each part is ``(..., n_k)``, also with more leading dimensions than the circuit's own, with
        which they broadcast.
        """


@runtime_checkable
class Linearized(Protocol):
    """The derivative ``J`` of a vector field at a state; directions are ``(..., N)``."""

    def product(self, direction: Tensor) -> Tensor:
        """``J v``, ``(..., N)``."""

    def transposed(self, direction: Tensor) -> Tensor:
        """``J^T v``, ``(..., N)``."""


def is_circuit(value: Any) -> bool:
    """Whether ``value`` has what :class:`DynamicalCircuit` names, and is no class itself."""
    return isinstance(value, DynamicalCircuit) and not isinstance(value, type)
