"""The oracle: the cell's step in a loop, differentiated by autograd."""

import torch
from torch import Tensor

from ..dynamics import State, euler_step
from .base import SequenceWork

__all__ = ["ReferenceBackend"]


class ReferenceBackend:
    """Works under every transform and to any order of derivative, at autograd's price."""

    name = "reference"

    def refusal(self, sequence: SequenceWork) -> None:
        return None

    def run(self, sequence: SequenceWork) -> tuple[Tensor, State]:
        state, outputs = sequence.state, []
        for x in sequence.x.unbind(0):
            state = euler_step(sequence.model, sequence.parameters, x, state)
            outputs.append(state.y)
        return torch.stack(outputs), state
