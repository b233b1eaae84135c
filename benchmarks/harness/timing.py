"""How long work takes: by the host's clock on a CPU, by events on a GPU.

A GPU computes behind the host's back, so its time is read from events in its own queue. Between two
of them lies all that was launched in between, and every gap in which the GPU waited for the host.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch

__all__ = ["Clock", "EventClock", "HostClock", "clock_for"]


class Clock(Protocol):
    """Marks points of a device's time, and tells the seconds between them."""

    def mark(self) -> Any:
        """The point at which all work so far is done."""

    def laps(self, marks: Sequence[Any]) -> list[float]:
        """Seconds from each mark to the next one, once the last is reached."""


class HostClock:
    """For work that is done when its call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def laps(self, marks: Sequence[float]) -> list[float]:
        return [later - earlier for earlier, later in pairwise(marks)]


class EventClock:
    """For work in the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def laps(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        marks[-1].synchronize()
        return [1e-3 * earlier.elapsed_time(later) for earlier, later in pairwise(marks)]


def clock_for(device: str) -> Clock:
    """The clock that tells a device's time."""
    return EventClock() if device.startswith("cuda") else HostClock()
