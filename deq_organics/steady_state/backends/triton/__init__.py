"""Steady states by Triton kernels: a batch's solve, with its verdict, or its adjoint in one launch.

The kernels do for one circuit what the torch code does for a batch; what they leave open goes back
to it. They are tested under Triton's interpreter, and imported when they are first needed.
"""

from .search import TritonBackend

__all__ = ["TritonBackend"]
