"""The parameters as the fused step takes them: ``k = dt / tau`` folded into the weights."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..dynamics import Parameters

__all__ = ["Folded", "Gates", "fold"]


class Gates(NamedTuple):
    """Parameters of Eq. 17, those of ``b`` above those of ``b0``."""

    weight_x: Tensor
    """``Wgx``, ``(2n, input_size)``."""
    weight_y: Tensor
    """``Wgy``, ``(2n, n)``."""
    weight_a: Tensor
    """``Wga``, ``(2n, n)``."""
    step: Tensor
    """``k``, ``(2n,)``."""


class Folded(NamedTuple):
    """Differentiable functions of the parameters, in which a step is written."""

    input_weight: Tensor
    """``k_y Wzx``, ``(n, input_size)``."""
    recurrent_weight: Tensor
    """``k_y Wr``, ``(n, n)``; ``k_y``, ``(n,)``, for the identity."""
    normalization_weight: Tensor
    """``k_a W``, ``(n, n)``."""
    keep_y: Tensor
    """``1 - k_y``, ``(n,)``."""
    keep_a: Tensor
    """``1 - k_a``, ``(n,)``."""
    semisaturation: Tensor
    """``c = k_a sigma^2``, ``(n,)``."""
    gates: Gates | None
    """None where the gains are fixed."""

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors, as an autograd function takes them."""
        *own, gates = self
        return (*own, *(gates or ()))

    @staticmethod
    def of(flat: Sequence[Tensor]) -> "Folded":
        """The inverse of :meth:`flat`."""
        wzx, wr, w, keep_y, keep_a, semisaturation, *gates = flat
        return Folded(wzx, wr, w, keep_y, keep_a, semisaturation, Gates(*gates) if gates else None)

    @property
    def identity(self) -> bool:
        """Whether ``Wr`` is the identity."""
        return self.recurrent_weight.ndim == 1


def fold(parameters: Parameters) -> Folded:
    """The parameters with the time constants folded in."""
    k_y, k_a = parameters.step_y, parameters.step_a
    recurrent = parameters.recurrent_weight
    gates = None
    if parameters.gain is not None and parameters.baseline_gain is not None:
        pairs = zip(parameters.gain, parameters.baseline_gain, strict=True)
        gates = Gates(*(torch.cat(pair) for pair in pairs))
    return Folded(
        k_y.unsqueeze(-1) * parameters.input_weight,
        k_y if recurrent is None else k_y.unsqueeze(-1) * recurrent,
        k_a.unsqueeze(-1) * parameters.normalization_weight,
        1.0 - k_y,
        1.0 - k_a,
        k_a * parameters.semisaturation.square(),
        gates,
    )
