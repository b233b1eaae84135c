"""The Cholesky factorizations of dissipation forms by a C kernel: definite.h has the argument."""

import ctypes

import torch
from torch import Tensor

from ..native import addresses, call, library, native_refusal
from ..plain_tensors import plain
from ..self_check import Deviation, failure, generator
from .balanced import Balanced

__all__ = ["exceeds", "refusal"]

# The kernel's bound of rounding errors is for forms of less than this many rows.
_LARGEST_FORM = 2**14
_WORTH_A_THREAD = 1 << 21
# More than a block of rows of any instruction set, the last one incomplete; and how far from
# the bound a form is when its answer is checked.
_NEURONS, _CIRCUITS, _DISTANCE = 37, 12, 0.05

_TENSORS = (
    *("recurrent_weight", "normalization_weight"),
    *("recurrence", "slope", "inhibition", "pooling", "excitation", "pool"),
    *("decay_y", "decay_a", "added", "exceeds"),
)
_STRIDES = {
    "recurrent_stride": ("recurrent_weight", 3),
    "pool_stride": ("normalization_weight", 3),
    "decay_y_stride": ("decay_y", 2),
    "decay_a_stride": ("decay_a", 2),
}


class _Forms(ctypes.Structure):
    """``struct forms`` of organics.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("neurons", *_STRIDES)),
        ("bound", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


def refusal(jacobian: Balanced) -> str | None:
    """Why the kernel cannot take these Jacobians, as part of a sentence; None if it can."""
    if (found := native_refusal(jacobian.pool.device)) is not None:
        return found
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if jacobian.pool.dtype != torch.float32:
        return f"{jacobian.pool.dtype}, only float32"
    if 2 * jacobian.pool.shape[1] >= _LARGEST_FORM:
        return f"{jacobian.pool.shape[1]} neurons, only fewer than {_LARGEST_FORM // 2}"
    return failure("dissipation kernel", jacobian.pool.device, library().instructions, _check)


def exceeds(jacobian: Balanced, bound: float, added: Tensor | None = None) -> Tensor:
    """Which forms ``-(J + J^T)``, plus the squares of some columns, are proved to exceed ``bound``.

    Args:
        jacobian: ``J`` of ``B`` circuits.
        bound: Nonnegative; times the identity.
        added: Two columns ``(B, 2n, 2)`` of each circuit, whose outer products are added.

    Returns:
        A mask ``(B,)``. Where it is false the form may exceed the bound by a little.
    """
    size, n = jacobian.pool.shape
    proved = torch.zeros(size, dtype=torch.bool, device=jacobian.pool.device)
    given: dict[str, Tensor | None] = {
        **{name: getattr(jacobian, name) for name in _TENSORS[:-2]},
        "added": None if added is None else added.mT,
        "exceeds": proved,
    }
    held = {
        name: None if tensor is None else plain(tensor.detach()) for name, tensor in given.items()
    }
    strides = {}
    for stride, (name, batched) in _STRIDES.items():
        tensor = held[name]
        own = tensor is not None and tensor.ndim == batched and tensor.shape[0] == size != 1
        strides[stride] = 0 if tensor is None or not own else tensor[0].numel()
    pointers = addresses(held, {"exceeds": torch.bool})
    arguments = _Forms(neurons=n, bound=bound, **strides, **pointers)
    call("exceeds", arguments, size, size * n**3 * 2 // _WORTH_A_THREAD)
    return proved


def _check(device: torch.device) -> None:
    """Raise where an answer is not that of eigenvalues in float64, on either side of the bound."""
    random = generator()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float32).to(device)

    n, size = _NEURONS, _CIRCUITS
    factors = [draw(size, n).abs() + 0.1 for _ in range(6)]
    weights = draw(n, n) / n, draw(size, n, n).abs() / n**2
    ones = torch.ones(1, n, dtype=torch.float32, device=device)
    # The decays put the smallest eigenvalue a little above the bound, or below.
    jacobian = Balanced._make((*weights, *factors, ones, draw(size, n).abs()))
    added = draw(size, 2 * n, 2)
    form = jacobian.map(torch.Tensor.double).matrix()
    form = added.double() @ added.double().mT - form - form.mT
    smallest = torch.linalg.eigvalsh(form)[:, 0]
    for side in (-1.0, 1.0):
        moved = (0.5 * (1.0 - smallest + side * _DISTANCE * smallest.abs().clamp_min(1.0))).float()
        shifted = jacobian._replace(
            decay_y=jacobian.decay_y + moved[:, None], decay_a=jacobian.decay_a + moved[:, None]
        )
        if (exceeds(shifted, 1.0, added) != (side > 0)).any():
            raise Deviation("its verdicts are not those of eigenvalues in float64")
