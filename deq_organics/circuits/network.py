"""Networks of circuits, which are circuits themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_choice
from ..circuit import Circuit
from ..equations import matvec
from .arguments import matrix, positive
from .organics_area import OrganicsArea
from .protocol import DynamicalCircuit
from .system import System

__all__ = ["Connection", "Network"]

_SIGNALS = ("rate", "potential", "rectified")
_TERMS = ("drive", "gain", "feedback", "inhibitory")


@dataclass(frozen=True, eq=False)
class Connection:
    """What an area sends to another one, or to itself.

    Args:
        source: Name of the area that sends; ``"A.V1"`` is ``"V1"`` of a network that is ``"A"``.
        target: Name of the area that receives, likewise.
        term: What it feeds: ``"drive"`` (added to the input), ``"gain"`` (added to the gain of
            the input), ``"feedback"`` (added to the recurrent term, within its gain) or
            ``"inhibitory"`` (added to the drive of the inhibitory or normalizing cells). The areas'
            own ``vector_field`` says what each is exactly.
        weight: ``(..., n, k)``, from the ``k`` cells of the source's part to those of the target;
            None is the identity.
        signal: ``"rate"`` (the source's firing rates, as ``y+``), ``"potential"`` (a part of its
            state) or ``"rectified"`` (that part, rectified: ``sqrt(y+)``).
        part: Which part of the source's state a potential is; None is its first one.
        tau: Time constant of a low-pass filter of what is sent, after the weights: positive, a
            number or ``(..., n)``. It adds a part to the network's state. None is no filter.
    """

    source: str
    target: str
    term: str = "drive"
    weight: Tensor | None = None
    signal: str = "rate"
    part: str | None = None
    tau: Tensor | float | None = None

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name}: got {type(getattr(self, name)).__name__}, expected an area's name"
                )
        check_choice("term", self.term, _TERMS)
        check_choice("signal", self.signal, _SIGNALS)
        if self.part is not None and self.signal == "rate":
            raise ValueError(f"part: got {self.part!r} with signal='rate', expected a potential")
        if self.weight is not None and as_float_tensor("weight", self.weight).ndim < 2:
            raise ValueError(f"weight: got shape {tuple(self.weight.shape)}, expected (..., n, k)")

    @property
    def name(self) -> str:
        """Of the part of the state that a filter adds."""
        return f"{self.source}->{self.target}.{self.term}"


class Network:
    """Areas that are connected: one circuit, solved, judged and differentiated as a whole.

    Its state has the parts of all areas, as ``"V1.y"``, and one for each filter, as
    ``"V2->V1.feedback"``. Each area may be stable alone and the whole unstable; what is said of a
    network is said of the whole. Leading dimensions of areas and weights broadcast.

    Args:
        areas: Circuits by name: :class:`Circuit`, those of the family, networks, or any other with
            ``inputs``, the names of the terms that ``vector_field(*parts, **inputs)`` takes, and
            ``rates(*parts)``. Names have no dots.
        connections: What the areas send each other; several into one term are summed.

    Raises:
        TypeError: An area is no circuit, or a connection is none.
        ValueError: A name is unknown, an area has no such term, or a shape does not fit.
    """

    def __init__(
        self, areas: Mapping[str, DynamicalCircuit], connections: Sequence[Connection] = ()
    ) -> None:
        if not isinstance(areas, Mapping) or not areas:
            raise TypeError(f"areas: got {type(areas).__name__}, expected circuits by name")
        self.areas: dict[str, Any] = {}
        self._systems: dict[str, System] = {}
        for name, area in areas.items():
            if not isinstance(name, str) or not name or "." in name or "->" in name:
                raise ValueError(f"areas: got the name {name!r}, expected one without dots or ->")
            self.areas[name] = OrganicsArea(area) if isinstance(area, Circuit) else area
            self._systems[name] = System(self.areas[name])
        self.connections = tuple(connections)
        first = next(iter(self._systems.values()))
        for name, system in self._systems.items():
            if system.dtype != first.dtype or system.device != first.device:
                raise ValueError(
                    f"areas: got {name} in {system.dtype} on {system.device}, expected "
                    f"{first.dtype} on {first.device} as the first area"
                )
        self._check_connections(first.rest)

    def _check_connections(self, like: Tensor) -> None:
        names = [connection.name for connection in self._filtered()]
        if len(set(names)) != len(names):
            raise ValueError(
                f"connections: got filters {names}, expected one for each source, target and term"
            )
        for number, connection in enumerate(self.connections):
            label = f"connections[{number}]"
            if not isinstance(connection, Connection):
                raise TypeError(f"{label}: got {type(connection).__name__}, expected a Connection")
            for role in ("source", "target"):
                area = getattr(connection, role).split(".")[0]
                if area not in self.areas:
                    raise ValueError(
                        f"{label}, {role}: got {area!r}, expected one of {tuple(self.areas)}"
                    )
            area, term = _enter(connection.target, connection.term)
            allowed = tuple(getattr(self.areas[area], "inputs", ()))
            if term not in allowed:
                raise ValueError(
                    f"{label}, term: got {term!r} of {area}, expected one of {allowed}"
                )
            size = self.input_size(connection.target, connection.term)
            sent = self._signal(connection, self._states(self.rest_of_areas()))
            width = sent.shape[-1]
            if connection.weight is not None:
                matrix(f"{label}, weight", connection.weight, (size, width), like)
            elif width not in (1, size):
                raise ValueError(
                    f"{label}, weight: got None for {width} cells to {size}, expected a matrix"
                )
            if connection.tau is not None:
                positive(f"{label}, tau", connection.tau, size, like)

    def input_size(self, target: str, term: str) -> int:
        """How many cells a term of an area feeds."""
        area, inner = _enter(target, term)
        found = self.areas[area]
        if isinstance(found, Network):
            return found.input_size(*inner.rsplit(".", 1))
        sizes = self._systems[area].sizes
        # The family's second kind of cells may be of another number.
        return sizes[1] if inner == "inhibitory" and len(sizes) > 1 else sizes[0]

    def _filtered(self) -> list[Connection]:
        return [link for link in self.connections if getattr(link, "tau", None) is not None]

    @property
    def parts(self) -> tuple[str, ...]:
        """``"V1.y"`` and so on, then one for each filter."""
        names = [f"{area}.{part}" for area, s in self._systems.items() for part in s.names]
        return (*names, *(connection.name for connection in self._filtered()))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Terms that a network of networks may feed: ``"V1.drive"`` and so on."""
        return tuple(
            f"{name}.{term}"
            for name, area in self.areas.items()
            for term in getattr(area, "inputs", ())
        )

    def rest_of_areas(self) -> tuple[Tensor, ...]:
        """Each area's own rest, all parts."""
        return tuple(part for area in self.areas.values() for part in area.rest())

    def rest(self) -> tuple[Tensor, ...]:
        """Each area at its own rest; filters at what is then sent through them."""
        parts = self.rest_of_areas()
        states = self._states(parts)
        return (*parts, *(self._sent(link, states) for link in self._filtered()))

    def _states(self, parts: Sequence[Tensor]) -> dict[str, tuple[Tensor, ...]]:
        """The parts of each area."""
        states, at = {}, 0
        for name, system in self._systems.items():
            states[name] = tuple(parts[at : at + len(system.names)])
            at += len(system.names)
        return states

    def _signal(self, link: Connection, states: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """What the cells of the source send, ``(..., k)``, before the weights."""
        area, _, inner = link.source.partition(".")
        return _signal_of(self.areas[area], inner, link, states[area])

    def _sent(self, link: Connection, states: Mapping[str, Sequence[Tensor]]) -> Tensor:
        sent = matvec(link.weight, self._signal(link, states))
        return sent.expand(*sent.shape[:-1], self.input_size(link.target, link.term))

    def vector_field(self, *parts: Tensor, **inputs: Tensor | float) -> tuple[Tensor, ...]:
        """The derivatives by time of all parts, with more input by term, as ``"V1.drive"``."""
        unknown = set(inputs) - set(self.inputs)
        if unknown:
            raise TypeError(f"{sorted(unknown)}: unknown inputs, expected some of {self.inputs}")
        states = self._states(parts)
        filters = self._filtered()
        sent_through = parts[len(parts) - len(filters) :]
        held = {link.name: part for link, part in zip(filters, sent_through, strict=True)}
        total: dict[str, dict[str, Tensor | float]] = {name: {} for name in self.areas}
        for key, value in inputs.items():
            area, _, term = key.partition(".")
            total[area][term] = value
        moving = []
        for link in self.connections:
            sent = self._sent(link, states)
            if link.tau is not None:
                moving.append((sent - held[link.name]) / link.tau)
                sent = held[link.name]
            area, term = _enter(link.target, link.term)
            total[area][term] = total[area].get(term, 0.0) + sent
        slopes: list[Tensor] = []
        for name, area in self.areas.items():
            slopes.extend(area.vector_field(*states[name], **total[name]))
        return (*slopes, *moving)

    def to(self, *args: Any, **kwargs: Any) -> "Network":
        """The same network in another dtype or on another device; all areas need ``to``."""
        links = []
        for link in self.connections:
            changed = {
                name: getattr(link, name).to(*args, **kwargs)
                for name in ("weight", "tau")
                if isinstance(getattr(link, name), Tensor)
            }
            links.append(Connection(**{**vars(link), **changed}))
        return Network({k: area.to(*args, **kwargs) for k, area in self.areas.items()}, links)


def _enter(target: str, term: str) -> tuple[str, str]:
    """The area of a network, and the name of the term within that area."""
    area, _, inner = target.partition(".")
    return area, f"{inner}.{term}" if inner else term


def _signal_of(area: Any, inner: str, link: Connection, parts: Sequence[Tensor]) -> Tensor:
    if isinstance(area, Network):
        name, _, rest = inner.partition(".")
        if name not in area.areas:
            raise ValueError(
                f"source: got {link.source!r}, expected an area within: {tuple(area.areas)}"
            )
        return _signal_of(area.areas[name], rest, link, area._states(parts)[name])
    if inner:
        raise ValueError(f"source: got {link.source!r}, which is not inside of a network")
    if link.signal == "rate":
        if not hasattr(area, "rates"):
            raise ValueError(f"signal: got 'rate' of {link.source}, which has no rates(*parts)")
        found: Tensor = area.rates(*parts)
        return found
    names = tuple(area.parts)
    if link.part is not None and link.part not in names:
        raise ValueError(f"part: got {link.part!r} of {link.source}, expected one of {names}")
    potential = parts[0 if link.part is None else names.index(link.part)]
    return torch.relu(potential) if link.signal == "rectified" else potential
