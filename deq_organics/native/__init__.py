"""Kernels in C for a CPU, which both packages use where their shared library was compiled.

``pip install`` compiles it where it finds a C compiler, and goes on without it where not.
"""

from .shared_library import Library, library, native_refusal
from .threads import spread

__all__ = ["Library", "library", "native_refusal", "spread"]
