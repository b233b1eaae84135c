"""Simulations whose input gains obey Eq. 17: from the arguments to a vector field."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_finite, check_number, check_positive, physical
from ..circuit import Circuit
from .arguments import like_circuit
from .drives import Steady, as_drive
from .fields import GainedFlow, GainLaw
from .gains import DynamicGain, InputGains
from .setting import (
    Input,
    Setting,
    flat_problem,
    flat_start,
    joint_batch,
    joint_pieces,
    looks,
)

__all__ = ["set_up_gains"]


def set_up_gains(
    circuit: Circuit, t: Tensor, y0: Any, a0: Any, gains0: dict[str, Any], given: Input
) -> Setting:
    """A setting in which Eq. 17 moves one gain or both; ``gains0`` are starts that are known."""
    _check(given)
    gains, n = given.gains, circuit.n
    options: dict[str, Any] = {"interpolation": given.interpolation}
    z = as_drive("gains.z", gains.z, circuit, t, width=n, **options)
    drives, width = {"gains.z": z}, 1
    if gains.x is not None:
        drives["gains.x"] = as_drive("gains.x", gains.x, circuit, t, **options)
    leads: dict[str, Sequence[int]] = {name: drive.lead for name, drive in drives.items()}
    x_width = None
    for name in ("input_gain", "baseline_gain"):
        leads |= _leads(f"gains.{name}", getattr(gains, name), circuit)
    leads |= _leads("gains.semisaturation", gains.semisaturation, circuit)
    batch = joint_batch(circuit, leads)
    problem = flat_problem(circuit, batch)
    flat = {name: drive.flat(batch) for name, drive in drives.items()}
    count, first = problem.batch_size, physical(t)[0].double()
    if gains.x is not None:
        x_width = flat["gains.x"](first.expand(count)).shape[-1]
        width = x_width
    else:
        flat["gains.x"] = Steady(problem.input_drive.new_zeros(1, 1))
    sigma = _vector("gains.semisaturation", gains.semisaturation, circuit, batch)
    laws: list[GainLaw | Tensor] = []
    values: list[Tensor] = []
    moving: list[str] = []
    for short, name in (("b", "input_gain"), ("b0", "baseline_gain")):
        gain, path = getattr(gains, name), f"gains.{name}"
        if isinstance(gain, DynamicGain):
            value = gains0.get(short, gain.start)
            values.append(_vector(f"{path}.start", value, circuit, batch))
            laws.append(_law(path, gain, circuit, batch, x_width, width))
            moving.append(short)
        else:
            positive = name == "baseline_gain"
            values.append(_vector(path, gain, circuit, batch, positive=positive))
            laws.append(values[-1])
    b, b0 = values
    start_y = torch.zeros_like(problem.input_drive)
    if y0 is not None:
        start_y = flat_start(circuit, "y0", y0, batch)
    rest = (b0 * sigma) ** problem.exponent
    start_a = rest if a0 is None else flat_start(circuit, "a0", a0, batch)
    pieces = joint_pieces(circuit, t, given, batch, list(flat.values()))
    size_z = flat["gains.z"].largest(looks(t, pieces)).expand(count, -1)
    at_most = torch.ones_like(b) if "b" in moving else b.detach().abs()
    starts = [value for short, value in zip(("b", "b0"), values, strict=True) if short in moving]
    ones = [torch.ones_like(value) for value in starts]
    return Setting(
        GainedFlow(problem, flat["gains.z"], flat["gains.x"], sigma, laws),
        problem,
        torch.cat([start_y, start_a, *starts], -1),
        torch.cat([at_most * size_z, rest.detach(), *ones], -1),
        pieces,
        batch,
        tuple(moving),
    )


def _check(given: Input) -> None:
    if not isinstance(given.gains, InputGains):
        raise TypeError(f"gains: got {type(given.gains).__name__}, expected InputGains")
    for name in ("input_drive", "inhibitory_drive"):
        if getattr(given, name) is not None:
            raise ValueError(f"{name}: got one beside gains, which make it of z and semisaturation")


def _leads(name: str, value: Any, circuit: Circuit) -> dict[str, Sequence[int]]:
    """Leading dimensions of what is given for a gain, by name."""
    if isinstance(value, DynamicGain):
        found: dict[str, Sequence[int]] = {}
        for part, core in (("weight_x", 2), ("weight_y", 2), ("weight_a", 2)):
            weight = getattr(value, part)
            if isinstance(weight, Tensor):
                found[f"{name}.{part}"] = weight.shape[:-core]
        for part in ("tau", "start"):
            found |= _leads(f"{name}.{part}", getattr(value, part), circuit)
        return found
    return {name: value.shape[:-1]} if isinstance(value, Tensor) and value.ndim else {}


def _vector(
    name: str, value: Any, circuit: Circuit, batch: torch.Size, *, positive: bool = True
) -> Tensor:
    """``(B, n)`` from a number, ``(n,)`` or ``(..., n)``."""
    if isinstance(value, Tensor):
        tensor = like_circuit(name, value, circuit)
    else:
        tensor = circuit.input_drive.new_full((), check_number(name, value))
    (check_positive if positive else check_finite)(name, tensor)
    shape = (*batch, circuit.n)
    try:
        return tensor.expand(shape).reshape(-1, circuit.n)
    except RuntimeError:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, expected a number, ({circuit.n},) or "
            f"(..., {circuit.n})"
        ) from None


def _law(
    name: str,
    gain: DynamicGain,
    circuit: Circuit,
    batch: torch.Size,
    x_width: int | None,
    width: int,
) -> GainLaw:
    n = circuit.n
    weights: list[Tensor] = []
    if gain.weight_x is not None and x_width is None:
        raise ValueError(f"{name}.weight_x: got one without gains.x, which it acts on")
    for part, columns in (("weight_x", width), ("weight_y", n), ("weight_a", n)):
        value = getattr(gain, part)
        if value is None:
            weights.append(circuit.input_drive.new_zeros(n, columns))
            continue
        weight = like_circuit(f"{name}.{part}", value, circuit)
        check_finite(f"{name}.{part}", weight)
        if weight.ndim < 2 or weight.shape[-2:] != (n, columns):
            raise ValueError(
                f"{name}.{part}: got shape {tuple(weight.shape)}, expected ({n}, {columns}) or "
                f"(..., {n}, {columns})"
            )
        if weight.ndim > 2:
            weight = weight.expand(*batch, n, columns).reshape(-1, n, columns)
        weights.append(weight)
    x, y, a = weights
    return GainLaw(x, y, a, _vector(f"{name}.tau", gain.tau, circuit, batch))
