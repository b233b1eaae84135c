"""What a backend is: one way to step a layer of circuits through a whole sequence."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from deq_organics import dispatch

from ..dynamics import GainParameters, Model, Parameters, State

__all__ = ["Backend", "SequenceWork"]


class SequenceWork(NamedTuple):
    """The work of one layer: ``T >= 1`` steps of a batch of ``B`` circuits."""

    model: Model
    parameters: Parameters
    x: Tensor
    """Input, ``(T, B, input_size)``, one row per step."""
    state: State
    """State before the first step, each ``(B, n)``."""

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that the result depends on."""
        yield self.x
        yield from self.state
        for value in self.parameters:
            if isinstance(value, GainParameters):
                yield from value
            elif value is not None:
                yield value


class Backend(dispatch.Backend[SequenceWork], Protocol):
    """One way to compute a :class:`SequenceWork`; all of them return the same numbers."""

    def run(self, sequence: SequenceWork) -> tuple[Tensor, State]:
        """``y`` after every step, ``(T, B, n)``, and the last state, each ``(B, n)``."""
