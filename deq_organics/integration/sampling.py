"""The states of a trajectory at the times that are asked for, collected while it is stepped."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .method import Method, Step

__all__ = ["ListedSamples", "MaskedSamples", "Passage", "Samples"]


class Passage(NamedTuple):
    """One step of ``B'`` samples, each tensor but the first ``(B',)``."""

    step: Step
    accepted: Tensor
    rows: Tensor
    """Places of the samples in the batch."""
    time: Tensor
    after: Tensor
    """Their times before and after; the same for those whose step was not accepted."""
    length: Tensor
    seen: Tensor
    ahead: Tensor
    """How many times of the grid are behind them, before and after."""


class Samples(Protocol):
    """Collects states ``(T, B, k)``; NaN where none was recorded."""

    def __init__(self, method: Method, start: Tensor, times: Tensor) -> None:
        """With the states ``(B, k)`` at the first of the times ``(T,)``."""
        ...

    def record(self, passage: Passage) -> None:
        """Take what the accepted steps passed."""
        ...

    def collect(self) -> Tensor:
        """All states, ``(T, B, k)``."""
        ...


class ListedSamples:
    """Lists the states as they come and orders them in the end."""

    def __init__(self, method: Method, start: Tensor, times: Tensor) -> None:
        self._method, self._times = method, times
        self._size = start.shape[0]
        self._places = [torch.arange(self._size, device=start.device)]
        self._states = [start]

    def record(self, passage: Passage) -> None:
        step, _, rows, time, _, length, seen, ahead = passage
        count = ahead - seen
        total = int(count.sum())
        if total == 0:
            return
        sample = torch.arange(count.numel(), device=count.device).repeat_interleave(count)
        first = count.cumsum(0) - count
        number = seen[sample] + torch.arange(total, device=count.device) - first[sample]
        part = (self._times[number] - time[sample]) / length[sample]
        self._states.append(self._method.interpolate(step.take(sample), part.to(step.end.dtype)))
        self._places.append(number * self._size + rows[sample])

    def collect(self) -> Tensor:
        places = torch.cat(self._places)
        missing = torch.ones(
            self._times.numel() * self._size, dtype=torch.bool, device=places.device
        )
        missing[places] = False
        unknown = missing.nonzero().squeeze(-1)
        width = self._states[0].shape[-1]
        nan = self._states[0].new_full((unknown.numel(), width), math.nan)
        order = torch.cat([places, unknown]).argsort()
        states = torch.cat([*self._states, nan]).index_select(0, order)
        return states.reshape(self._times.numel(), self._size, width)


class MaskedSamples:
    """Looks at all times in every step: slower, but no shape depends on values (``vmap``)."""

    def __init__(self, method: Method, start: Tensor, times: Tensor) -> None:
        self._method, self._times = method, times.unsqueeze(-1)
        first = torch.arange(times.numel(), device=start.device)[:, None, None] == 0
        self._states = torch.where(first, start, math.nan)

    def record(self, passage: Passage) -> None:
        step, accepted, _, time, after, length, _, _ = passage
        passed = accepted & (self._times > time) & (self._times <= after)
        part = torch.where(passed, self._times - time, 0.0) / torch.where(accepted, length, 1.0)
        states = self._method.interpolate(step, part.to(step.end.dtype))
        self._states = torch.where(passed.unsqueeze(-1), states, self._states)

    def collect(self) -> Tensor:
        return self._states
