"""What is fitted: named parameters with a start and bounds, and all of them as one vector."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_finite, check_number

__all__ = ["FitParameter", "Vector"]


@dataclass(frozen=True)
class FitParameter:
    """A parameter to fit, a number or a tensor of any shape.

    Args:
        start: Where the search starts, strictly within the bounds.
        low: What no value is below; none that is tried is equal to it.
        high: What no value is above, likewise.

    Raises:
        TypeError: An argument is no number or floating-point tensor.
        ValueError: ``start`` is not finite or not strictly within the bounds.
    """

    start: Tensor | float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if not (isinstance(bound, float) and math.isinf(bound)):
                check_number(name, bound)
        start = self.start
        if not isinstance(start, Tensor):
            start = torch.tensor(check_number("start", start), dtype=torch.float64)
        check_finite("start", as_float_tensor("start", start))
        values = start.detach().double().cpu().clone()
        if values.numel() == 0 or not bool(((values > self.low) & (values < self.high)).all()):
            raise ValueError(
                f"start: got {self.start!r}, expected values strictly between low={self.low:g} "
                f"and high={self.high:g}"
            )
        object.__setattr__(self, "start", values)


class Vector:
    """Parameters by name as one vector of float64 and back."""

    def __init__(self, parameters: Mapping[str, Any], device: torch.device) -> None:
        if not isinstance(parameters, Mapping):
            raise TypeError(
                f"parameters: got {type(parameters).__name__}, expected a dict of FitParameter"
            )
        if not parameters:
            raise ValueError("parameters: got none, expected at least one")
        self.parameters = {
            name: value if isinstance(value, FitParameter) else _named(name, value)
            for name, value in parameters.items()
        }
        starts = [torch.as_tensor(each.start) for each in self.parameters.values()]
        self.shapes = [start.shape for start in starts]
        self.sizes = [start.numel() for start in starts]
        self.start = torch.cat([start.flatten() for start in starts])
        self.low, self.high = (
            torch.cat(
                [
                    torch.full((size,), float(getattr(each, end)), dtype=torch.float64)
                    for each, size in zip(self.parameters.values(), self.sizes, strict=True)
                ]
            )
            for end in ("low", "high")
        )
        self._device = device

    def names(self) -> list[str]:
        """A name for each entry, with its place in the parameter's own shape."""
        found = []
        for name, shape in zip(self.parameters, self.shapes, strict=True):
            places = itertools.product(*(range(size) for size in shape))
            found += [f"{name}{list(place)}" if place else name for place in places]
        return found

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Each parameter in its own shape, on the data's device."""
        parts = vector.to(self._device).split(self.sizes)
        shaped = zip(self.parameters, parts, self.shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in shaped}


def _named(name: str, value: Any) -> FitParameter:
    try:
        return FitParameter(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"parameters[{name!r}], {error}") from error
