"""Steady states by C kernels on a CPU: samples iterate one by one, a tile of them at a time.

The kernels do what the torch code does for a batch; what they leave open goes back to it. The
weights are packed once, and a sample that has converged leaves its place in the tile to the next
one, so that a step's products stay large to the end and no result depends on the batch around it.
"""

from .search import NativeBackend

__all__ = ["NativeBackend"]
