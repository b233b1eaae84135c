"""Refuses what does not fit into memory before it is begun."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["available_memory", "check_memory"]

# What is smaller is not worth looking.
_SMALL = 2**28
# Limits of control groups, of both versions: a container's is often below the host's memory.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(
    what: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, copies: float = 1.0
) -> None:
    """Raise MemoryError where a result, with what its computation holds, exceeds the memory.

    Args:
        what: The function and its result, for the message.
        shape: The result's shape.
        dtype: The result's dtype.
        device: Where it is computed.
        copies: How many tensors of that size are alive at once.
    """
    size = dtype.itemsize
    for length in shape:
        size *= length
    needed = copies * size
    if needed < _SMALL:
        return
    available = available_memory(device)
    if available is not None and needed > available:
        raise MemoryError(
            f"{what} of shape {tuple(shape)} ({dtype}) takes {_gigabytes(size)}, "
            f"{_gigabytes(needed)} while it is computed, and {_gigabytes(available)} are available "
            f"on {device}; take fewer at a time"
        )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on the device; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [_machine(), *(_limit(Path(limit)) for limit in _LIMITS)]
    return min((size for size in found if size is not None), default=None)


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
