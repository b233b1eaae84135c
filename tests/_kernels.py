"""Where kernels are tested: on a GPU, or under Triton's interpreter; those in C where compiled."""

from typing import Any

import pytest
import torch

from deq_organics import self_check
from deq_organics.native import native_refusal

__all__ = [
    "CPU_REFUSAL",
    "DEVICE",
    "FIRST_ON_CPU",
    "KERNELS",
    "NATIVE",
    "NEXT_BACKEND",
    "SINGLE",
    "pass_self_checks",
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What computes steady states where the kernels do not: on a CPU those in C, if they were compiled.
NEXT_BACKEND = "native" if native_refusal(DEVICE) is None else "torch"


def _is_ready() -> bool:
    try:
        from triton.runtime import interpreter
    except ImportError:
        return False
    # Triton 3.6 turns the bound of a loop into an int in a way that NumPy 2.5 no longer takes.
    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended
    return True


CPU_REFUSAL = native_refusal(torch.device("cpu"))
NATIVE = pytest.mark.skipif(CPU_REFUSAL is not None, reason=str(CPU_REFUSAL))
# The backend of sequences that `auto` takes there in single precision.
FIRST_ON_CPU = "native" if CPU_REFUSAL is None else "fused"
# Backends that compute in single precision only.
SINGLE = ("cuda", "native")
KERNELS = pytest.mark.skipif(not _is_ready(), reason="the package triton is missing")


def pass_self_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that compare the kernels with torch themselves."""
    monkeypatch.setattr(self_check, "_RESULTS", {})
    monkeypatch.setattr(self_check, "_run", lambda family, device, check: None)
