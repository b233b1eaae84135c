"""Says which circuits' trajectories did not get to the end, when and why."""

import torch

from ..caller_warnings import warn_caller
from ..checks import physical
from ..errors import SimulationError, SimulationWarning
from ..integration import Outcome, Run

__all__ = ["report_failures"]

_NAMED = 5


def report_failures(found: Run, batch: torch.Size, on_failure: str, max_steps: int) -> None:
    """Warn or raise for the circuits that did not get to the end."""
    outcome, time = physical(found.outcome), physical(found.time)
    failed = outcome != Outcome.FINISHED
    if on_failure == "ignore" or not failed.any():
        return
    reasons = {
        Outcome.DIVERGED: "diverge",
        Outcome.STALLED: "ask for steps below the resolution of time, for these tolerances",
        Outcome.TOO_MANY_STEPS: (
            f"take more than {max_steps} steps (stiff ones take few with method='rodas5p')"
        ),
    }
    parts = []
    for kind, reason in reasons.items():
        rows = (outcome == kind).nonzero().tolist()
        if rows:
            places = [
                f"{_place(row, batch)} at t = {float(time[tuple(row)]):.6g}"
                for row in rows[:_NAMED]
            ]
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            parts.append(f"{len(rows)} {reason}: {', '.join(places)}{more}")
    message = (
        f"{int(failed.sum())} of {failed.numel()} circuits do not get to the end of t: "
        f"{'; '.join(parts)}"
    )
    if on_failure == "error":
        raise SimulationError(message)
    warn_caller(f"{message}. Their states are NaN from there on.", SimulationWarning)


def _place(row: list[int], batch: torch.Size) -> str:
    """The circuit's index in the batch; a transform's own dimensions come first."""
    flat, index = row[-1], []
    for size in reversed(batch):
        flat, rest = divmod(flat, size)
        index.append(rest)
    return f"[{', '.join(str(i) for i in (*row[:-1], *reversed(index)))}]"
