"""The solves of ``methods/normalized.py`` and ``steady_state/adjoint.py`` as Triton kernels.

One program takes one circuit from its input drive to its steady state: the weights stay in
registers, vectors of neurons too, and nothing returns to the host in between. Products are sums
of float32 products, never TF32. Names follow the torch code that each function mirrors; sizes are
padded to ``N``, a power of two, with neurons that have no drive, no weights and ``a = 1``.

Loops that end early are written as a ``for`` with an ``if``: Triton 3.6 fails on some ``while``
loops.
"""

from .adjoint import adjoint_kernel
from .preconditioner import prepare_kernel
from .solve import solve_kernel

__all__ = ["adjoint_kernel", "prepare_kernel", "solve_kernel"]
