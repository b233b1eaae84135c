"""A simulation's input and start, from the arguments to a vector field of a flat batch."""

from typing import Any

import torch
from torch import Tensor

from ..circuit import Circuit
from ..integration import VectorField
from ..problem import Flow
from ..steady_state.record import SteadyState
from .drives import Drive, GivenDrive, Steady, as_drive
from .fields import DrivenFlow
from .gained_input import set_up_gains
from .setting import (
    Input,
    Setting,
    flat_problem,
    flat_start,
    joint_batch,
    joint_pieces,
    looks,
)
from .trajectory import Trajectory

__all__ = ["set_up"]


def set_up(circuit: Circuit, t: Tensor, start: tuple[Any, Any, Any], given: Input) -> Setting:
    """The vector field and the start ``(y0, a0, start)`` of a simulation at the times ``t``."""
    y0, a0, gains0 = _given_start(*start)
    if given.gains is not None:
        return set_up_gains(circuit, t, y0, a0, gains0, given)
    return _driven(circuit, t, y0, a0, given)


def _given_start(y0: Any, a0: Any, start: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Starts of ``y``, ``a`` and the gains; None is the default."""
    if start is None:
        return y0, a0, {}
    if y0 is not None or a0 is not None:
        raise ValueError("start: got one beside y0 or a0, expected either of them")
    if isinstance(start, Trajectory):
        last = {"b": start.b, "b0": start.b0}
        gains0 = {name: values[-1] for name, values in last.items() if values is not None}
        return start.y[-1], start.a[-1], gains0
    if isinstance(start, SteadyState):
        return start.y, start.a, {}
    if isinstance(start, tuple | list) and len(start) == 2:
        return start[0], start[1], {}
    if isinstance(start, str) and start == "rest":
        return None, None, {}
    got = repr(start) if isinstance(start, str) else type(start).__name__
    raise TypeError(f"start: got {got}, expected 'rest', (y, a), a SteadyState or a Trajectory")


def _driven(circuit: Circuit, t: Tensor, y0: Any, a0: Any, given: Input) -> Setting:
    """A setting without gains that move."""
    drives: dict[str, GivenDrive] = {}
    for name in ("input_drive", "inhibitory_drive"):
        value = getattr(given, name)
        if value is not None:
            drives[name] = as_drive(
                name,
                value,
                circuit,
                t,
                interpolation=given.interpolation,
                positive=name == "inhibitory_drive",
                width=circuit.n,
            )
    batch = joint_batch(circuit, {name: drive.lead for name, drive in drives.items()})
    problem = flat_problem(circuit, batch)
    flat: list[Drive] = [
        drives[name].flat(batch) if name in drives else Steady(getattr(problem, name))
        for name in ("input_drive", "inhibitory_drive")
    ]
    count = problem.batch_size
    start_y = torch.zeros_like(problem.input_drive)
    if y0 is not None:
        start_y = flat_start(circuit, "y0", y0, batch)
    if a0 is None:
        start_a = flat[1](t[0].double().expand(count)).expand(count, -1)
    else:
        start_a = flat_start(circuit, "a0", a0, batch)
    pieces = joint_pieces(circuit, t, given, batch, flat)
    times = looks(t, pieces)
    sizes = []
    for drive, own in zip(flat, (problem.input_drive, problem.inhibitory_drive), strict=True):
        size = drive.largest(times).expand(count, -1)
        nothing = (size == 0).all(-1, keepdim=True)
        sizes.append(torch.where(nothing, own.detach().abs(), size))
    field: VectorField = DrivenFlow(problem, *flat) if drives else Flow(problem)
    start = torch.cat([start_y, start_a], -1)
    return Setting(field, problem, start, torch.cat(sizes, -1), pieces, batch, ())
