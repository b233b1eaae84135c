"""Training steps of several contenders, timed in turn.

In each round every contender is timed once, in random order, so that a busy or a warming machine
slows all alike. A timing follows an untimed call, so that none pays for what its predecessor left
in the caches and the allocator, and lasts `Pace.shortest` seconds or longer: short steps are called
several times in a row without waiting for the device in between, as in training, and the time is
divided by their number. Slow contenders take part in fewer rounds, spread evenly over the race.
"""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from harness.timing import Clock

__all__ = ["Attempt", "Contender", "Pace", "Step", "Times", "gradient_step", "race", "run_step"]


class Attempt(Protocol):
    """Runs an action; if it fails, notes so under a name, and returns None."""

    def __call__(self, what: str, action: Callable[..., Any]) -> Any: ...


class Step(NamedTuple):
    """A training step in two halves, ready to run."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    """Takes what ``forward`` returned."""


def gradient_step(outputs: Callable[[], Tensor], weights: Tensor, leaves: Sequence[Tensor]) -> Step:
    """A weighted sum of outputs, and its gradients by the leaves."""
    return Step(
        forward=lambda: (outputs() * weights).sum(),
        backward=lambda loss: torch.autograd.grad(loss, leaves),
    )


def run_step(step: Step) -> None:
    """One step, without its results."""
    step.backward(step.forward())


@dataclass(frozen=True)
class Contender:
    """Something to be timed."""

    name: str
    prepare: Callable[[Tensor], Step]
    """The step for an input."""
    setting: str = ""
    """For people: how it is set up."""
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Torch's settings while it is prepared and runs."""


@dataclass(frozen=True)
class Pace:
    """How often contenders are timed."""

    rounds: int
    fewest: int = 3
    """Rounds of the slowest contenders (at most ``rounds``)."""
    seconds: float = 6.0
    """A contender that needs longer for all rounds takes part in fewer."""
    shortest: float = 0.01
    """Seconds of a timing at least."""

    def calls(self, seconds: float) -> int:
        """Calls in a timing of a step that takes some seconds."""
        return max(1, math.ceil(self.shortest / max(seconds, 1e-6)))

    def rounds_of(self, seconds: float) -> int:
        """Rounds in which a step that takes some seconds is timed."""
        one_round = (1 + self.calls(seconds)) * seconds
        affordable = int(self.seconds / max(one_round, 1e-6))
        return max(1, min(self.rounds, max(self.fewest, affordable)))


@dataclass
class Times:
    """Seconds per call of a contender, one entry a round."""

    calls: int
    forward: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    """Forward and backward."""

    @property
    def median_forward(self) -> float:
        return statistics.median(self.forward)

    @property
    def median_total(self) -> float:
        return statistics.median(self.total)

    def record(self) -> dict[str, Any]:
        """For JSON: the medians, and all that was measured."""
        return {
            "forward_milliseconds": 1e3 * self.median_forward,
            "milliseconds": 1e3 * self.median_total,
            "rounds": len(self.total),
            "calls_per_timing": self.calls,
            "seconds": {"forward": self.forward, "total": self.total},
        }


class _Runner:
    """A contender that is ready: compiled, warm, and with a pace of its own."""

    def __init__(self, contender: Contender, x: Tensor, clock: Clock, pace: Pace) -> None:
        self.contender, self.clock = contender, clock
        with contender.mode():
            self.step = contender.prepare(x)
            run_step(self.step)
            _, seconds = self._measure(1)
        self.rounds = pace.rounds_of(seconds)
        self.times = Times(pace.calls(seconds))

    def takes_part(self, number: int, rounds: int) -> bool:
        """Whether this is one of its rounds, of ``rounds`` in all."""
        return number * self.rounds // rounds < (number + 1) * self.rounds // rounds

    def run(self) -> Times:
        """An untimed call, then a timing; all times so far."""
        with self.contender.mode():
            run_step(self.step)
            forward, total = self._measure(self.times.calls)
        self.times.forward.append(forward)
        self.times.total.append(total)
        return self.times

    def _measure(self, calls: int) -> tuple[float, float]:
        """Seconds per call, of forward and of forward and backward."""
        marks = [self.clock.mark()]
        for _ in range(calls):
            result = self.step.forward()
            marks.append(self.clock.mark())
            self.step.backward(result)
            marks.append(self.clock.mark())
        laps = self.clock.laps(marks)
        return sum(laps[::2]) / calls, sum(laps) / calls


def race(
    contenders: Sequence[Contender],
    x: Tensor,
    clock: Clock,
    pace: Pace,
    attempt: Attempt,
    label: str,
    seed: int,
) -> dict[str, Times]:
    """Times of all contenders that ran, by name; one that fails leaves the race, not its times."""
    runners: dict[str, _Runner] = {}
    for contender in tqdm(contenders, desc=f"{label}: warming up", disable=None):
        runner = attempt(
            f"{label}: {contender.name}",
            lambda contender=contender: _Runner(contender, x, clock, pace),
        )
        if runner is not None:
            runners[contender.name] = runner
    racing, order = dict(runners), random.Random(seed)
    for number in tqdm(range(pace.rounds), desc=label, unit="round", disable=None):
        for name in order.sample(list(racing), len(racing)):
            runner = racing[name]
            if not runner.takes_part(number, pace.rounds):
                continue
            if attempt(f"{label}: {name}", runner.run) is None:
                del racing[name]
    return {name: runner.times for name, runner in runners.items() if runner.times.total}
