"""Whether Triton kernels can run on a device, and if not, why."""

from functools import cache
from importlib.util import find_spec

import torch

__all__ = ["kernel_refusal"]

# The kernels rely on the tensor cores' TF32 and on asynchronous copies, both new with 8.0.
_OLDEST = (8, 0)


def kernel_refusal(device: torch.device) -> str | None:
    """Why no Triton kernel can run on this device, as part of a sentence; None if one can."""
    if device.type != "cuda":
        return f"tensors on {device.type}, only on cuda"
    if torch.version.hip is not None:
        return "AMD GPUs, only NVIDIA's"
    if not _has_triton():
        return "this installation: the package triton is missing"
    capability = _capability(device)
    if capability < _OLDEST:
        return f"compute capability {'.'.join(map(str, capability))}, only 8.0 and newer"
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
