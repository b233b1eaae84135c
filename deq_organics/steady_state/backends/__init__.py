"""Choose the backend that computes a steady state: kernels where they apply, else torch."""

from ...dispatch import Registry
from .base import Adjoint, Search, SteadyStateBackend, Work
from .by_torch import TorchBackend
from .native import NativeBackend
from .triton import TritonBackend

__all__ = ["BACKENDS", "Adjoint", "Search", "SteadyStateBackend", "Work"]

BACKENDS: Registry[Work, SteadyStateBackend] = Registry(
    TritonBackend(), NativeBackend(), TorchBackend()
)
