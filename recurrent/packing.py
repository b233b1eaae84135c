"""Sequences of different lengths, as ``torch.nn.utils.rnn.PackedSequence`` holds them."""

from collections.abc import Callable, Iterable
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .dynamics import State
from .tracing import is_exporting

__all__ = ["blocks_of", "packed_like", "run_blocks", "select"]


def blocks_of(packed: PackedSequence) -> list[Tensor]:
    """The data cut where sequences end: blocks ``(T_i, B_i, features)``, ``B_i`` decreasing.

    Raises:
        ValueError: The batch sizes do not describe the data.
        NotImplementedError: Under torch.export, which would make these lengths those of all calls.
    """
    if is_exporting():
        raise NotImplementedError("x: got a PackedSequence under torch.export, expected a tensor")
    sizes = packed.batch_sizes.tolist()
    if not sizes or sizes != sorted(sizes, reverse=True) or sum(sizes) != len(packed.data):
        raise ValueError(
            f"x.batch_sizes: got {len(sizes)} sizes of sum {sum(sizes)} for data of shape "
            f"{tuple(packed.data.shape)}, expected at least one, none larger than the one before "
            "it, and their sum to be the number of rows"
        )
    runs = [(size, len(list(group))) for size, group in groupby(sizes)]
    parts = packed.data.split([size * steps for size, steps in runs])
    return [
        part.reshape(steps, size, packed.data.shape[-1])
        for part, (size, steps) in zip(parts, runs, strict=True)
    ]


def packed_like(packed: PackedSequence, blocks: Iterable[Tensor]) -> PackedSequence:
    """Blocks as a packed sequence of the same lengths and order as ``packed``."""
    data = torch.cat([block.flatten(0, 1) for block in blocks])
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def run_blocks(
    run: Callable[[Tensor, State], tuple[Tensor, State]], blocks: Iterable[Tensor], state: State
) -> tuple[list[Tensor], State]:
    """Step through blocks one after the other.

    Args:
        run: Outputs and last state of the steps of a block, from its first state.
        blocks: ``(T_i, B_i, features)``, ``B_i`` decreasing: sequences end, the last ones first.
        state: Before the first step, each ``(B_1, n)``.

    Returns:
        The outputs of each block, and the state of every sequence after its own last step.
    """
    outputs, ended = [], []
    for block in blocks:
        going = block.shape[1]
        if going < state.y.shape[0]:
            ended.append(State(*(part[going:] for part in state)))
            state = State(*(part[:going] for part in state))
        output, state = run(block, state)
        outputs.append(output)
    if ended:
        state = State(*(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True)))
    return outputs, state


def select(state: State, indices: Tensor | None) -> State:
    """The sequences of those indices, ``(..., B, n)``; all in their order for None."""
    if indices is None:
        return state
    return State(*(part.index_select(-2, indices) for part in state))
