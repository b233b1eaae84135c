"""Where kernels are tested: on a GPU, or where there is none under Triton's interpreter."""

from typing import Any

import pytest
import torch

from deq_organics import self_check
from deq_organics.native import native_refusal

__all__ = ["CPU_BACKEND", "DEVICE", "KERNELS", "NEXT_BACKEND", "pass_self_checks"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What computes steady states on a CPU: kernels in C, if they were compiled.
CPU_BACKEND = "native" if native_refusal(torch.device("cpu")) is None else "torch"
# And what does where the kernels here do not.
NEXT_BACKEND = CPU_BACKEND if DEVICE.type == "cpu" else "torch"


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


KERNELS = pytest.mark.skipif(not _is_ready(), reason="the package triton is missing")


def pass_self_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that compare the kernels with torch themselves."""
    monkeypatch.setattr(self_check, "_RESULTS", {})
    monkeypatch.setattr(self_check, "_run", lambda family, device, check: None)
