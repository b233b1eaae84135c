"""In which floating-point type a circuit is stepped, whatever its parameters' type is."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision", "is_autocast", "state_type"]

# Dynamo cannot ask torch for it.
_WITHOUT_AUTOCAST = "meta"


def state_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the states for parameters of type ``dtype``, at least float32.

    A state in half precision would lose the small increments of a step.
    """
    return torch.promote_types(dtype, torch.float32)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors on that device."""
    return device.type != _WITHOUT_AUTOCAST and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast takes no product on that device below float32."""
    if device.type == _WITHOUT_AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
