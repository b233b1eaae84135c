"""Weights that obey a constraint, as attributes of the module that holds them.

``torch.nn.utils.parametrize`` gives each module that it works on a class of its own, which
``pickle`` and ``torch.func.stack_module_state`` refuse. Here a child module holds the free
parameter, under the name that it has there: ``parametrizations.<name>.original``.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .checks import as_float_tensor

__all__ = ["Constrained", "Constraint", "HoldsConstrained"]

_CHILD = "parametrizations"


class Constraint(Protocol):
    """A map from free parameters to weights, a module; see :mod:`deq_organics.parametrizations`."""

    def __call__(self, free: Tensor, /) -> Tensor:
        """The weight."""

    def right_inverse(self, weight: Tensor, /) -> Tensor:
        """The free parameter of a weight; ValueError for one that breaks the constraint."""


class Constrained(nn.Module):
    """The weight ``name`` as a function of its free parameter ``original``."""

    def __init__(self, name: str, weight: Tensor, constraint: Constraint) -> None:
        super().__init__()
        self.name = name
        self.constraint = constraint
        self.original = nn.Parameter(constraint.right_inverse(weight.detach()))

    def forward(self) -> Tensor:
        """The weight."""
        return self.constraint(self.original)

    def assign(self, weight: Tensor) -> None:
        """Make ``weight`` the value.

        Raises:
            TypeError: It is no floating-point tensor.
            ValueError: Its shape, dtype or device does not fit, or it breaks the constraint.
        """
        original = self.original
        found, expected = (
            f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
            for tensor in (as_float_tensor(self.name, weight), original)
        )
        if found != expected:
            raise ValueError(f"{self.name}: got shape {found}, expected {expected}")
        with torch.no_grad():
            original.copy_(self.constraint.right_inverse(weight))


class HoldsConstrained(nn.Module):
    """A module whose constrained weights are read and assigned like any attribute."""

    def constrain(self, name: str, constraint: Constraint) -> None:
        """Let the parameter ``name`` obey ``constraint`` from now on; it keeps its value."""
        constrained = Constrained(name, getattr(self, name), constraint)
        delattr(self, name)
        if _CHILD not in self._modules:
            self.add_module(_CHILD, nn.Module())
        getattr(self, _CHILD).add_module(name, constrained)

    def remove_constraint(self, name: str) -> None:
        """Make the constrained weight ``name`` a plain parameter; it keeps its value.

        Raises:
            ValueError: ``name`` is no constrained weight.
        """
        constrained = self._constrained(name)
        if constrained is None:
            raise ValueError(f"name: got {name!r}, expected the name of a constrained weight")
        weight = nn.Parameter(constrained().detach().clone())
        delattr(getattr(self, _CHILD), name)
        self.register_parameter(name, weight)

    def free_parameters(self) -> dict[str, nn.Parameter]:
        """Of this module itself, those of constrained weights too, by the names of the weights.

        In a fraction of the time of ``named_parameters``, which walks through all modules.
        """
        found = {name: part for name, part in self._parameters.items() if part is not None}
        child = self._modules.get(_CHILD)
        for name, constrained in () if child is None else child._modules.items():
            if isinstance(constrained, Constrained):
                found[name] = constrained.original
        return found

    def fill(self, name: str, value: Tensor) -> None:
        """Give a weight or buffer these values, in place, whether it is constrained or not."""
        if name in self._parameters or name in self._buffers:
            with torch.no_grad():
                getattr(self, name).copy_(value)
        else:
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        constrained = self._constrained(name)
        return super().__getattr__(name) if constrained is None else constrained()

    def __setattr__(self, name: str, value: Any) -> None:
        constrained = self._constrained(name)
        if constrained is not None:
            constrained.assign(value)
            return
        if name == _CHILD and isinstance(value, nn.ModuleDict) and name in self._modules:
            # torch's parametrize, for a weight that is not constrained here, needs the same name.
            value.update(getattr(self, name).named_children())
        super().__setattr__(name, value)

    def _constrained(self, name: str) -> Constrained | None:
        # Looked up with care: pickle and copy ask before there are any modules.
        child = self.__dict__.get("_modules", {}).get(_CHILD)
        found = None if child is None else child._modules.get(name)
        return found if isinstance(found, Constrained) else None
