"""Compiles Triton kernels for a GPU that need not be there, and counts what they use.

Run as a script, without Triton's interpreter, with programs in JSON on standard input.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

__all__ = [
    "COMPILER",
    "H100_SHARED_MEMORY",
    "MEASURED",
    "Program",
    "Resources",
    "compile_for_gpu",
]

CAPABILITY, WARP = 90, 32
H100_SHARED_MEMORY = 232448


def _compiler() -> str:
    try:
        return ".".join(version("triton").split(".")[:2])
    except PackageNotFoundError:
        return "missing"


# What a program takes depends on the compiler: bounds hold for the versions that were measured.
COMPILER = _compiler()
MEASURED = pytest.mark.skipif(
    COMPILER not in ("3.6", "3.8"),
    reason=f"registers and memory were measured with Triton 3.6 and 3.8, not {COMPILER}",
)


class Program(NamedTuple):
    """A kernel, and how it is compiled."""

    module: str
    kernel: str
    types: dict[str, str]
    """Of the arguments that are no constants, in Triton's notation."""
    constants: dict[str, Any]
    """The other arguments."""
    warps: int


class Resources(NamedTuple):
    """What one program takes."""

    shared: int
    """Bytes of shared memory."""
    stack: int
    """Bytes of local memory to which a thread's registers are spilled."""
    tensor_cores: bool
    """Whether products go to the tensor cores."""


def compile_for_gpu(programs: Sequence[Program]) -> list[Resources]:
    """Compile for an H100, in a process of its own: the interpreter cannot be switched off."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([program._asdict() for program in programs]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Resources(**used) for used in json.loads(done.stdout)]


def _compile(program: Program) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(program.module), program.kernel)
    names, types = function.arg_names, program.types
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in names},
        program.constants,
        {(index,): aligned for index, name in enumerate(names) if name in types},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", CAPABILITY, WARP),
        options={"num_warps": program.warps, "enable_fp_fusion": True},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        usage = subprocess.check_output([tool, "-res-usage", binary.name], text=True)
    return Resources(
        shared=compiled.metadata.shared,
        stack=int(re.findall(r"STACK:(\d+)", usage)[-1]),
        tensor_cores=re.search(r"\b(wgmma|mma)\.", compiled.asm["ptx"]) is not None,
    )


if __name__ == "__main__":
    requests = [Program(**request) for request in json.load(sys.stdin)]
    print(json.dumps([_compile(program)._asdict() for program in requests]))
