"""Kernels in C for a CPU, which both packages use where their shared library was compiled.

``pip install`` compiles it where it finds a C compiler, and goes on without it where not.
"""

from .calls import addresses, call, pack, padded
from .shared_library import Library, library, native_refusal

__all__ = ["Library", "addresses", "call", "library", "native_refusal", "pack", "padded"]
