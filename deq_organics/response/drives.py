"""Input that changes in time: a function of the time, or samples with what lies between them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..checks import check_finite, check_positive, is_transformed, physical
from ..circuit import Circuit
from .arguments import as_tensor_or_array, like_circuit

__all__ = ["INTERPOLATIONS", "Drive", "GivenDrive", "Steady", "as_drive"]

INTERPOLATIONS = ("linear", "previous")


class Drive(Protocol):
    """Values for ``B`` circuits at a time of each."""

    def __call__(self, time: Tensor) -> Tensor:
        """``(B, k)`` at the times ``(B,)``."""
        ...

    def select(self, index: Tensor) -> "Drive":
        """The drive of the circuits at the indices ``(B',)`` alone."""
        ...

    def breaks(self) -> Tensor:
        """Times at which the values jump or bend, ``(B, K)`` or ``(1, K)``, float64."""
        ...

    def largest(self, times: Tensor) -> Tensor:
        """Largest magnitudes, ``(B, k)`` or ``(1, k)``; of a function, those at ``times``."""
        ...


class GivenDrive(NamedTuple):
    """A drive before it is known to which batch of circuits it belongs."""

    lead: torch.Size
    """Its own leading dimensions, without that of the time."""
    flat: Callable[[torch.Size], Drive]
    """The drive of a batch of circuits of that shape."""


def as_drive(
    name: str,
    value: Any,
    circuit: Circuit,
    t: Tensor,
    *,
    interpolation: str,
    positive: bool = False,
    width: int | None = None,
) -> GivenDrive:
    """The argument ``name``, of ``width`` values a circuit (any number for None), checked.

    It is a callable of the time, a tensor ``(T, ..., k)`` at the times ``t`` ``(T,)``, or
    ``(times, values)``.
    """
    if callable(value) and not isinstance(value, Tensor):
        return _called(name, value, circuit, t, positive, width)
    times = physical(t).double()
    if isinstance(value, tuple):
        if len(value) != 2:
            raise TypeError(f"{name}: got a tuple of {len(value)}, expected (times, values)")
        times = _sample_times(f"{name}[0]", value[0], circuit, times, interpolation)
        name, value = f"{name}[1]", value[1]
    values = like_circuit(name, value, circuit)
    count, last = times.numel(), "k" if width is None else width
    bad_width = values.ndim < 2 or (width is not None and values.shape[-1] != width)
    if bad_width or values.shape[0] != count:
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)}, expected ({count}, ..., {last}): "
            "values at each of the times; for one that does not change give a function of the time"
        )
    (check_positive if positive else check_finite)(name, values)

    def flat(batch: torch.Size) -> Drive:
        own = values.reshape(count, *(1,) * (len(batch) + 2 - values.ndim), *values.shape[1:])
        one = all(size == 1 for size in own.shape[1:-1])
        spread = own if one else own.expand(count, *batch, own.shape[-1])
        return Sampled(times, spread.reshape(count, -1, own.shape[-1]), interpolation == "linear")

    return GivenDrive(values.shape[1:-1], flat)


def _sample_times(name: str, value: Any, circuit: Circuit, t: Tensor, interpolation: str) -> Tensor:
    times = physical(as_tensor_or_array(name, value, circuit.input_drive.device)).to(t.device)
    check_finite(name, times)
    times = times.double()
    if times.ndim != 1 or times.numel() < 2 or not (times.diff() > 0).all():
        raise ValueError(
            f"{name}: got shape {tuple(times.shape)}, expected (S,) increasing times, S >= 2"
        )
    short = interpolation == "linear" and times[-1] < t[-1]
    if times[0] > t[0] or short:
        raise ValueError(
            f"{name}: got times from {float(times[0]):g} to {float(times[-1]):g}, expected those "
            f"of t, from {float(t[0]):g} to {float(t[-1]):g}"
        )
    return times


class Steady:
    """Values ``(B, k)``, or ``(1, k)`` for all circuits, that do not change."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __call__(self, time: Tensor) -> Tensor:
        return self._values.expand(time.shape[0], -1)

    def select(self, index: Tensor) -> "Steady":
        return self if self._values.shape[0] == 1 else Steady(self._values[index])

    def breaks(self) -> Tensor:
        return self._values.new_empty((1, 0), dtype=torch.float64)

    def largest(self, times: Tensor) -> Tensor:
        return self._values.detach().abs()


class Sampled:
    """Values ``(S, B, k)``, or ``(S, 1, k)`` for all circuits, at times ``(S,)``."""

    def __init__(self, times: Tensor, values: Tensor, linear: bool) -> None:
        self._times, self._values, self._linear = times, values, linear

    def __call__(self, time: Tensor) -> Tensor:
        count, size, _ = self._values.shape
        before = torch.searchsorted(self._times, time.detach().contiguous(), right=True) - 1
        before = before.clamp(0, count - 2 if self._linear else count - 1)
        row = torch.arange(size, device=time.device) if size > 1 else torch.zeros_like(before)
        value = self._values[before, row]
        if not self._linear:
            return value
        begin = self._times[before]
        part = (time - begin) / (self._times[before + 1] - begin)
        rise = self._values[before + 1, row] - value
        return value + part.to(value.dtype).unsqueeze(-1) * rise

    def select(self, index: Tensor) -> "Sampled":
        one = self._values.shape[1] == 1
        return self if one else Sampled(self._times, self._values[:, index], self._linear)

    def breaks(self) -> Tensor:
        """Where a circuit's own values jump or bend: a constant stretch has no break."""
        if is_transformed(self._values):
            return self._times.unsqueeze(0)
        change = self._values.detach().diff(dim=0)
        places = self._times[1:]
        if self._linear:
            change = (change / self._times.diff()[:, None, None]).diff(dim=0)
            places = places[:-1]
        broken = (change != 0).any(-1).mT
        if not broken.any():
            return self._times.new_empty((1, 0))
        most = int(broken.sum(-1).max())
        return torch.where(broken, places, torch.inf).sort(-1).values[:, :most]

    def largest(self, times: Tensor) -> Tensor:
        return self._values.detach().abs().amax(0)


def _called(
    name: str,
    function: Callable[[Tensor], Any],
    circuit: Circuit,
    t: Tensor,
    positive: bool,
    width: int | None,
) -> GivenDrive:
    first = physical(t)[:1].double()
    shape = _value_of(name, function, first, circuit, width).shape
    last = shape[-1] if width is None else width
    return GivenDrive(
        shape[:-1], lambda batch: Called(name, function, circuit, batch, last, positive)
    )


class Called:
    """A user's function of the times ``(..., 1)`` of circuits ``(...)``."""

    def __init__(
        self,
        name: str,
        function: Callable[[Tensor], Any],
        circuit: Circuit,
        batch: torch.Size,
        width: int,
        positive: bool,
    ) -> None:
        self._name, self._function, self._circuit = name, function, circuit
        self._batch, self._width, self._positive = batch, width, positive
        self._rows: Tensor | None = None

    def __call__(self, time: Tensor) -> Tensor:
        shape = (*self._batch, self._width)
        every = time
        if self._rows is not None:
            # The function knows only the whole batch: the others get some time of these.
            every = time.detach()[:1].expand(self._batch.numel()).index_copy(0, self._rows, time)
        every = every.reshape(*self._batch, 1)
        value = _value_of(self._name, self._function, every, self._circuit, self._width)
        try:
            value = value.expand(shape).reshape(-1, self._width)
        except RuntimeError:
            raise ValueError(
                f"{self._name}: the function returned shape {tuple(value.shape)} for times "
                f"{tuple(every.shape)}, expected to broadcast to {shape}"
            ) from None
        value = value if self._rows is None else value[self._rows]
        self._check(value, time)
        return value

    def _check(self, value: Tensor, time: Tensor) -> None:
        known = physical(value)
        good = torch.isfinite(known)
        if self._positive:
            good &= known > 0
        if not good.all():
            kind = "finite and positive" if self._positive else "finite"
            when = physical(time).expand(good.shape[:-1])[~good.all(-1)]
            raise ValueError(
                f"{self._name}: the function returned {float(known[~good][0]):g} at t = "
                f"{float(when[0]):.6g}, expected {kind} values"
            )

    def select(self, index: Tensor) -> "Called":
        chosen = Called(
            self._name, self._function, self._circuit, self._batch, self._width, self._positive
        )
        chosen._rows = index if self._rows is None else self._rows[index]
        return chosen

    def breaks(self) -> Tensor:
        return torch.empty((1, 0), dtype=torch.float64, device=self._circuit.input_drive.device)

    @torch.no_grad()
    def largest(self, times: Tensor) -> Tensor:
        found = self(times[:1].expand(self._batch.numel())).abs()
        for time in times[1:]:
            found = torch.maximum(found, self(time.expand(self._batch.numel())).abs())
        return found.detach()


def _value_of(
    name: str, function: Callable[[Tensor], Any], time: Tensor, circuit: Circuit, width: int | None
) -> Tensor:
    drive, value = circuit.input_drive, function(time)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: the function returned {kind}, expected a floating-point tensor")
    if value.device != drive.device:
        raise ValueError(
            f"{name}: the function returned device {value.device}, expected {drive.device}"
        )
    if value.ndim == 0 or (width is not None and value.shape[-1] not in (1, width)):
        raise ValueError(
            f"{name}: the function returned shape {tuple(value.shape)} for times "
            f"{tuple(time.shape)}, expected (..., {'k' if width is None else width})"
        )
    return value.to(drive.dtype)
