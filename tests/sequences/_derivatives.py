"""Everything that a sequence module computes, for comparisons of its backends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recurrent import ORGaNICsRNN, State

__all__ = ["outputs_and_gradients"]


def outputs_and_gradients(
    rnn: ORGaNICsRNN,
    backend: str,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs and last state, and the gradients of their weighted sum by everything, by name."""
    dtype = dtype or x.dtype
    rnn.to(dtype).backend = backend
    x = x.to(dtype).requires_grad_()
    state = State(*(part.to(dtype).requires_grad_() for part in state))
    output, last = rnn(x, state)
    values = [output, *last]
    loss = sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))
    inputs = {"x": x, **state._asdict(), **dict(rnn.named_parameters())}
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return values, dict(zip(inputs, gradients, strict=True))
