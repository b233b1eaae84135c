"""Some circuits of a batch, and several batches as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .problem import CORE_DIMENSIONS, Problem

__all__ = ["pick", "stacked"]


def pick(problem: Problem, batch: torch.Size, index: Any) -> Problem:
    """The circuits that ``index`` chooses by the leading dimensions ``batch``, as views if it can.

    Tensors that all circuits share stay shared.

    Raises:
        TypeError: The index is of a kind that no tensor takes.
        IndexError: It is out of range or has more dimensions than ``batch``.
    """
    full = _full_index(index, batch)

    def chosen(tensor: Tensor, core: int) -> Tensor:
        own = tensor.shape[-core:]
        return tensor.expand(*batch, *own)[full]

    def part(tensor: Tensor, core: int) -> Tensor:
        shared = all(size == 1 for size in tensor.shape[:-core])
        return tensor.reshape(tensor.shape[-core:]) if shared else chosen(tensor, core)

    # The drive has the leading dimensions, also where all of them are 1.
    return problem.map(part)._replace(input_drive=chosen(problem.input_drive, 1))


def _full_index(index: Any, batch: torch.Size) -> tuple[Any, ...]:
    """An index whose last part is an Ellipsis, for the neurons."""
    parts = [_one(part) for part in (index if isinstance(index, tuple) else (index,))]
    used = sum(_dimensions(part) for part in parts)
    if used > len(batch):
        raise IndexError(
            f"index: got {used} dimensions, expected at most {len(batch)}: the leading dimensions "
            f"{tuple(batch)} are the circuits"
        )
    gaps = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(gaps) > 1:
        raise IndexError("index: got several Ellipsis (...), expected one at most")
    for place in gaps:
        parts[place : place + 1] = [slice(None)] * (len(batch) - used)
    return (*parts, Ellipsis)


def _one(part: Any) -> Any:
    """A part of an index as torch takes it; sequences and arrays as tensors."""
    if part is None or part is Ellipsis or isinstance(part, slice | Tensor):
        return part
    if isinstance(part, bool):
        raise TypeError("index: got a bool, expected an int, a slice, or a mask as a tensor")
    if isinstance(part, int | np.integer):
        return int(part)
    if isinstance(part, list | np.ndarray):
        found = torch.as_tensor(part)
        return found.long() if found.numel() == 0 else found
    raise TypeError(
        f"index: got {type(part).__name__}, expected an int, a slice, None, ... or a tensor"
    )


def _dimensions(part: Any) -> int:
    """How many dimensions a part of an index takes."""
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
        return part.ndim
    return 1


def stacked(problems: Sequence[Problem]) -> Problem:
    """Circuits of equal leading dimensions in one batch with a new first dimension.

    A tensor that is one and the same in all of them stays shared.

    Raises:
        ValueError: Shapes, dtypes, devices or options differ.
    """
    first = problems[0]
    batch = _check_alike(problems)

    def stack(name: str, core: int) -> Any:
        tensors = [getattr(problem, name) for problem in problems]
        if not isinstance(tensors[0], Tensor):
            return tensors[0]
        if name != "input_drive" and all(tensor is tensors[0] for tensor in tensors):
            return tensors[0]
        whole = [tensor.reshape(_padded(tensor, core, len(batch))) for tensor in tensors]
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in whole))
        if name == "input_drive":
            shape = torch.Size((*batch, shape[-1]))
        return torch.stack([tensor.expand(shape) for tensor in whole])

    return first._replace(**{name: stack(name, core) for name, core in CORE_DIMENSIONS.items()})


def _padded(tensor: Tensor, core: int, rank: int) -> tuple[int, ...]:
    missing = rank - (tensor.ndim - core)
    return (*[1] * missing, *tensor.shape)


def _check_alike(problems: Sequence[Problem]) -> torch.Size:
    """The leading dimensions that all have; raises for the first circuit that differs."""
    expected = _traits(problems[0])
    for number, problem in enumerate(problems):
        for name, value in _traits(problem).items():
            if value != expected[name]:
                raise ValueError(
                    f"circuits[{number}]: got {name} {value}, expected {expected[name]} as in "
                    "circuits[0]"
                )
    return problems[0].leading_shape()


def _traits(problem: Problem) -> dict[str, Any]:
    """What circuits of one batch have in common, by the words that tell of it."""
    drive = problem.input_drive
    return {
        "leading dimensions": tuple(problem.leading_shape()),
        "a number of neurons of": drive.shape[-1],
        "dtype": drive.dtype,
        "device": str(drive.device),
        "exponent": "a tensor" if isinstance(problem.exponent, Tensor) else problem.exponent,
        "rectified": problem.rectified,
        "recurrent_weight": "None (the identity)"
        if problem.recurrent_weight is None
        else "a matrix",
    }
