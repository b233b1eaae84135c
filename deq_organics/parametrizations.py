"""Constraints on weights, for :class:`HoldsConstrained` or ``torch.nn.utils.parametrize``.

Each class has ``forward`` (from the free parameter to the constrained weight) and
``right_inverse`` (from an assigned weight to the parameter). A value that breaks the constraint
is refused: an assigned weight is never changed silently.
"""

from functools import partial

import torch
from torch import Tensor, nn

from . import singular_value
from .checks import (
    as_float_tensor,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    is_transformed,
)
from .constrained import Constrained
from .dispatch import BACKENDS, Choice, PartKernel, choose_part
from .spectral_norm import bounding_scale

__all__ = [
    "Interval",
    "Nonnegative",
    "Positive",
    "SingularValueBound",
    "UnitInterval",
    "bound_choice",
    "set_bounds_backend",
]

_SLACK = 1e-4


class SingularValueBound(nn.Module):
    """Matrices ``(..., n, n)`` whose largest singular value is at most ``bound``.

    A matrix above the bound is scaled down to it, one within the bound is left as it is. The
    singular value is exact (no state, no iteration that ends early), the same in training and
    evaluation: on a GPU to single precision for a float32 matrix of at most 128 rows, else computed
    in double precision. :mod:`deq_organics.spectral_norm` says what its derivatives are where
    singular values coincide or are the bound.

    Args:
        bound: The bound, positive.
        name: What errors call the matrix.
        backend: ``"torch"``, ``"cuda"`` or ``"auto"`` (a Triton kernel, where it can take the
            matrix and passes its self-check; ``"cuda"`` raises where that fails); ``"native"`` has
            no kernel of this and means torch.
    """

    def __init__(self, bound: float = 1.0, name: str = "weight", backend: str = "auto") -> None:
        super().__init__()
        self.bound = check_number("bound", bound, low=0.0, open_low=True)
        self.name = name
        self.backend = check_choice("backend", backend, BACKENDS)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight * min(1, bound / sigma_max(weight))``.

        Raises:
            ValueError: ``weight`` is not finite; compiled code returns NaN in place of the error.
        """
        if not (torch.compiler.is_compiling() or weight.is_meta or is_transformed(weight)):
            if self.backend_for(weight).backend == "cuda":
                return weight * singular_value.bounding_scale(weight, self.bound, self._scale)
            rows, columns = weight.detach().abs().sum(-1), weight.detach().abs().sum(-2)
            if bool((rows.amax(-1) * columns.amax(-1) <= self.bound**2).all()):
                # Hoelder's inequality proves the bound: no singular value is needed.
                return weight
        check_finite(self.name, weight)
        return weight * self._scale(weight)

    def backend_for(self, weight: Tensor) -> Choice[str]:
        """By what the singular value of this matrix is computed, and why.

        Raises:
            RuntimeError: The backend is ``"cuda"``, and the kernel fails its self-check.
        """
        kernel = PartKernel(
            "cuda",
            partial(singular_value.refusal, weight),
            partial(singular_value.self_check, weight),
        )
        return choose_part(self.backend, "singular-value bound", kernel)

    def _scale(self, weight: Tensor) -> Tensor:
        return bounding_scale(weight, self.bound)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``weight`` itself; ValueError if its largest singular value exceeds the bound."""
        check_finite(self.name, as_float_tensor(self.name, weight))
        scale = 1.0 if weight.is_meta else float(self._scale(weight.detach()).min())
        # An orthogonal matrix in half precision exceeds 1 by the rounding of its entries.
        slack = max(_SLACK, 4.0 * torch.finfo(weight.dtype).eps)
        if scale < 1.0 / (1.0 + slack):
            raise ValueError(
                f"{self.name}: got a largest singular value of {self.bound / scale:g}, "
                f"expected at most {self.bound:g}"
            )
        return weight

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}"


def set_bounds_backend(module: nn.Module, backend: str) -> None:
    """Let all singular-value bounds in a module be computed by ``backend``."""
    for child in module.modules():
        if isinstance(child, SingularValueBound):
            child.backend = backend


def bound_choice(module: nn.Module) -> dict[str, Choice[str]]:
    """By what the singular-value bound in a module is computed; empty without one."""
    for child in module.modules():
        if isinstance(child, Constrained) and isinstance(child.constraint, SingularValueBound):
            return {"singular-value bound": child.constraint.backend_for(child.original)}
    return {}


class _Elementwise(nn.Module):
    """A constraint on each entry.

    Args:
        name: What errors call the weight.
    """

    def __init__(self, name: str = "value") -> None:
        super().__init__()
        self.name = name


class Positive(_Elementwise):
    """Positive values, ``exp(parameter)``."""

    def forward(self, log_value: Tensor) -> Tensor:
        """``exp(log_value)``."""
        return log_value.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(value)``; ValueError if a value is not positive."""
        check_positive(self.name, as_float_tensor(self.name, value))
        return value.log()


class Nonnegative(_Elementwise):
    """Nonnegative values, ``exp(parameter)`` as in the paper.

    An assigned zero becomes the dtype's smallest normal number (1e-38 in float32).
    """

    def forward(self, log_value: Tensor) -> Tensor:
        """``exp(log_value)``."""
        return log_value.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """``log(value)``; ValueError if a value is negative."""
        check_positive(self.name, as_float_tensor(self.name, value), allow_zero=True)
        return value.clamp_min(torch.finfo(value.dtype).tiny).log()


class UnitInterval(_Elementwise):
    """Values in (0, 1), ``sigmoid(parameter)``."""

    def forward(self, logit: Tensor) -> Tensor:
        """``sigmoid(logit)``."""
        return logit.sigmoid()

    def right_inverse(self, value: Tensor) -> Tensor:
        """``logit(value)``; ValueError if a value is not strictly between 0 and 1."""
        check_positive(self.name, as_float_tensor(self.name, value))
        largest = float(value.max()) if value.numel() and not value.is_meta else 0.0
        if largest >= 1:
            raise ValueError(
                f"{self.name}: got a largest value of {largest:g}, expected values below 1"
            )
        return value.logit()


class Interval(UnitInterval):
    """Values in (low, high), ``low + (high - low) sigmoid(parameter)``."""

    def __init__(self, low: float, high: float, name: str = "value") -> None:
        super().__init__(name)
        self.low = check_number("low", low)
        self.high = check_number("high", high, low=self.low, open_low=True)

    def forward(self, logit: Tensor) -> Tensor:
        """``low + (high - low) sigmoid(logit)``."""
        return self.low + (self.high - self.low) * super().forward(logit)

    def right_inverse(self, value: Tensor) -> Tensor:
        """``logit((value - low) / (high - low))``; ValueError for a value outside the interval."""
        unit = (as_float_tensor(self.name, value) - self.low) / (self.high - self.low)
        check_finite(self.name, unit)
        if not value.is_meta and not bool(((unit > 0) & (unit < 1)).all()):
            raise ValueError(
                f"{self.name}: got values from {float(value.min()):g} to {float(value.max()):g}, "
                f"expected values in ({self.low:g}, {self.high:g})"
            )
        return super().right_inverse(unit)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"
