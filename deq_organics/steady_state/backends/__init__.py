"""By what a steady state is computed: torch everywhere, or CUDA kernels where they apply."""

from ...dispatch import Registry
from .base import Adjoint, Search, SteadyStateBackend, Work
from .by_torch import TorchBackend
from .triton import TritonBackend

__all__ = ["BACKENDS", "Adjoint", "Search", "SteadyStateBackend", "Work"]

BACKENDS: Registry[Work, SteadyStateBackend] = Registry(TritonBackend(), TorchBackend())
