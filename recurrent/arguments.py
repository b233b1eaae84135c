"""Checks of what a cell or a sequence module is called with."""

from torch import Tensor

from deq_organics.checks import as_float_tensor, check_all_finite, check_finite

from .dynamics import State
from .precision import is_autocast, state_type

__all__ = ["check_input", "check_state"]


def check_input(x: Tensor, weight: Tensor, ndims: tuple[int, ...], expected: str) -> None:
    """Raise where ``x`` does not go with the input weights ``(n, input_size)``."""
    as_float_tensor("x", x)
    size = weight.shape[-1]
    if x.ndim not in ndims or x.shape[-1] != size:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {expected.format(size)}")
    if x.device != weight.device:
        raise ValueError(f"x: got device {x.device}, expected {weight.device} as the parameters")
    if x.dtype != weight.dtype and not is_autocast(x.device):
        raise ValueError(f"x: got {x.dtype}, expected {weight.dtype} as the parameters")
    check_finite("x", x)


def check_state(state: State, shape: tuple[int, ...], weight: Tensor) -> State:
    """``state`` as a :class:`State` of four finite tensors of that shape, like ``weight``.

    They become at least float32; half precision is taken from who has it.
    """
    if not isinstance(state, tuple) or len(state) != len(State._fields):
        length = f" of length {len(state)}" if isinstance(state, tuple) else ""
        raise TypeError(
            f"state: got {type(state).__name__}{length}, expected a State of four tensors"
        )
    state = State(*state)
    named = {f"state.{name}": tensor for name, tensor in state._asdict().items()}
    dtype = state_type(weight.dtype)
    for name, tensor in named.items():
        as_float_tensor(name, tensor)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
        known = tensor.dtype in (dtype, weight.dtype) or is_autocast(tensor.device)
        if not known or tensor.device != weight.device:
            raise ValueError(
                f"{name}: got {tensor.dtype} on {tensor.device}, "
                f"expected {dtype} on {weight.device} as the parameters"
            )
    check_all_finite(named)
    return State(*(tensor.to(dtype) for tensor in state))
