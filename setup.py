"""Compile the C kernels, if there is a compiler; all else is in pyproject.toml.

The library belongs to no interpreter and is loaded by ctypes. It must run on every processor of
its kind: no ``-march`` here, the kernels for newer instructions are chosen when it is loaded.
"""

import hashlib
import sys
from pathlib import Path

from setuptools import Extension, setup

source = Path("deq_organics/native/source")
digest = hashlib.sha256()
# As deq_organics.native.shared_library computes it, which cannot be imported here.
for path in sorted(source.glob("*.[ch]")):
    digest.update(path.read_bytes().replace(b"\r\n", b"\n"))

setup(
    ext_modules=[
        Extension(
            "deq_organics.native._kernels",
            sources=[path.as_posix() for path in sorted(source.glob("*.c"))],
            depends=[path.as_posix() for path in sorted(source.glob("*.h"))],
            define_macros=[("ORGANICS_SOURCES", f'"{digest.hexdigest()[:16]}"')],
            extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno"]
            if sys.platform != "win32"
            else [],
            optional=True,
        )
    ]
)
