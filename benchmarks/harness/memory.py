"""Peak memory of a computation, as torch's allocator sees it."""

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

__all__ = ["peak_bytes"]


def peak_bytes(action: Callable[[], None], device: str) -> int:
    """The most bytes that ``action`` holds at a time above what was held before.

    On CUDA the allocator keeps that figure. On a CPU the profiler records every allocation and
    release, in order; their running sum's maximum is the peak.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Not torch.profiler's, which makes a table of all operations for ten times as long.
    with profile(profile_memory=True) as record:
        action()
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
