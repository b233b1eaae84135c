"""The shared library of C kernels: whether there is one, and its functions for this processor."""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Library", "digest_of", "library", "native_refusal"]

_FOLDER = Path(__file__).parent
# By what torch calls the processor's capability: our name, and the floats of a vector.
_INSTRUCTIONS = {"AVX512": ("avx512", 16), "AVX2": ("avx2", 8)}
_PORTABLE = ("portable", 4)


class Library(NamedTuple):
    """The functions of the shared library for one instruction set."""

    handle: ctypes.CDLL
    instructions: str
    lanes: int
    """Floats of a vector."""

    @property
    def panel(self) -> int:
        """Columns of a panel of a packed matrix."""
        return 2 * self.lanes

    def function(self, name: str) -> Callable[..., int]:
        """The kernel of that name; it returns 0, or 1 where there was no memory."""
        return getattr(self.handle, f"organics_{name}_{self.instructions}")


def digest_of(folder: Path) -> str:
    """Of the C sources in a folder, which the library keeps of those that it was compiled from."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]")):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def library() -> Library:
    """The compiled library; only where :func:`native_refusal` has nothing against it."""
    found = _load(_FOLDER, torch.backends.cpu.get_cpu_capability())
    assert isinstance(found, Library)
    return found


def native_refusal(device: torch.device) -> str | None:
    """Why no C kernel can run on this device, as part of a sentence; None if one can."""
    if device.type != "cpu":
        return f"tensors on {device.type}, only on a CPU"
    found = _load(_FOLDER, torch.backends.cpu.get_cpu_capability())
    return found if isinstance(found, str) else None


@cache
def _load(folder: Path, capability: str) -> Library | str:
    """The library in a folder, or why there is none."""
    paths = [folder / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return (
            "this installation: no compiled library (pip found no C compiler when it installed "
            "deq_organics)"
        )
    try:
        handle: Any = ctypes.CDLL(str(path))
        compiled = ctypes.c_char_p.in_dll(handle, "organics_sources").value
    except (OSError, ValueError) as error:
        return f"this installation: its compiled library cannot be loaded ({error})"
    sources = folder / "source"
    if sources.is_dir() and compiled != (digest := digest_of(sources)).encode():
        found = "nothing" if compiled is None else compiled.decode(errors="replace")
        return (
            f"this installation: its compiled library is of other sources ({found}, expected "
            f"{digest}); install deq_organics again"
        )
    name, lanes = _INSTRUCTIONS.get(capability, _PORTABLE)
    if not hasattr(handle, f"organics_sequence_forward_{name}"):
        name, lanes = _PORTABLE
    return Library(handle, name, lanes)
