"""Checks of tensors that go with a circuit."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_float_tensor, check_same_device
from ..circuit import Circuit
from ..circuit_arguments import at_least_single

__all__ = ["as_tensor_or_array", "check_circuit", "check_leading", "like_circuit"]


def check_circuit(circuit: Any) -> Circuit:
    """``circuit``, which must be one and hold values."""
    if not isinstance(circuit, Circuit):
        raise TypeError(f"circuit: got {type(circuit).__name__}, expected a Circuit")
    return circuit


def as_tensor_or_array(name: str, value: Any, device: torch.device) -> Tensor:
    """``value``, a floating-point tensor, or a numpy array of real numbers as one."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.tensor(value.astype(np.float64), device=device)
    return as_float_tensor(name, value)


def like_circuit(name: str, value: Any, circuit: Circuit) -> Tensor:
    """``value`` as a tensor of the circuit's device and dtype; numpy arrays are cast to it."""
    drive = circuit.input_drive
    tensor = as_tensor_or_array(name, value, drive.device)
    check_same_device("input_drive", drive, name, tensor)
    if not isinstance(value, Tensor):
        tensor = tensor.to(drive.dtype)
    tensor = at_least_single(tensor)
    if tensor.dtype != drive.dtype:
        raise ValueError(f"{name}: got {tensor.dtype}, expected {drive.dtype} as the circuit")
    return tensor


def check_leading(name: str, tensor: Tensor, batch: torch.Size, core: int = 1) -> None:
    """Raise ValueError unless the dimensions before the last ``core`` are the circuits'."""
    try:
        fits = torch.broadcast_shapes(tensor.shape[: tensor.ndim - core], batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected leading dimensions, which are "
            f"circuits, that broadcast with {tuple(batch)} and do not enlarge it"
        )
