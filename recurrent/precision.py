"""In which floating-point type a circuit is stepped, whatever its parameters' type is."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision", "is_autocast", "state_type"]


def state_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the states for parameters of type ``dtype``, at least float32.

    A state in half precision would lose the small increments of a step.
    """
    return torch.promote_types(dtype, torch.float32)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors on that device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast takes no product on that device below float32."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
