"""What a simulation returns: the states in time, which unpack as ``y, a``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree

from .. import equations
from ..checks import check_choice, physical

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Trajectory"]

_QUANTITIES = {
    "rates": "firing rate y+",
    "y": "membrane potential y",
    "a": "membrane potential a",
    "b": "input gain b",
    "b0": "baseline gain b0",
}


class Trajectory(tuple[Tensor, Tensor]):
    """Trajectories of a batch of circuits: the pair ``(y, a)``, and what else is known of them.

    It unpacks and indexes as the tuple ``(y, a)`` that it is: ``y, a = simulate(circuit, t)``.
    Transforms of ``torch.func`` and ``torch.utils._pytree`` return the plain tuple.

    Attributes:
        t: The times ``(T,)``.
        exponent: The circuits' power-law exponent ``m``.
        b: The input gains ``(T, ..., n)`` where they obey Eq. 17; None where they do not move.
        b0: The baseline gains, likewise.
        reached: The last time that each circuit reached, ``(...)``, float64: the last of ``t``, or
            where it diverged or ran out of steps and became NaN.
        settled: The time of ``t`` from which on each circuit stays at its stable fixed point,
            ``(...)``, float64; NaN where that was not seen, or not asked for.
    """

    t: Tensor
    exponent: float | Tensor
    b: Tensor | None
    b0: Tensor | None
    reached: Tensor
    settled: Tensor

    def __new__(
        cls,
        t: Tensor,
        y: Tensor,
        a: Tensor,
        exponent: float | Tensor,
        reached: Tensor,
        settled: Tensor,
        b: Tensor | None = None,
        b0: Tensor | None = None,
    ) -> "Trajectory":
        made = super().__new__(cls, (y, a))
        made.t, made.exponent, made.b, made.b0 = t, exponent, b, b0
        made.reached, made.settled = reached, settled
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets it be copied and pickled."""
        parts = (self.exponent, self.reached, self.settled, self.b, self.b0)
        return (Trajectory, (self.t, *self, *parts))

    @property
    def y(self) -> Tensor:
        """Membrane potentials of the principal neurons, ``(T, ..., n)``."""
        return self[0]

    @property
    def a(self) -> Tensor:
        """Membrane potentials of the inhibitory neurons, ``(T, ..., n)``."""
        return self[1]

    @property
    def rates(self) -> Tensor:
        """Firing rates of the principal neurons, ``y+ = relu(y)^m``, ``(T, ..., n)``."""
        return equations.firing_rate(self.y, self.exponent)

    @property
    def finished(self) -> Tensor:
        """Which circuits got to the last time, boolean ``(...)``."""
        return ~physical(self.y)[-1].isnan().any(-1)

    def __repr__(self) -> str:
        times, rates = physical(self.t), physical(self.rates)
        finished, reached = self.finished, physical(self.reached)
        settled = ~physical(self.settled).isnan()
        lines = [
            f"Trajectory of {finished.numel()} circuits, n = {self.y.shape[-1]}, at {len(times)} "
            f"times from {float(times[0]):.6g} to {float(times[-1]):.6g}: "
            f"{int(finished.sum())} got to the end"
        ]
        known = rates[:, finished]
        if known.numel():
            last = known[-1].flatten()
            lines.append(
                f"  rates: largest {float(known.max()):.4g}, at the end max {float(last.max()):.4g}"
                f", median {float(last.median()):.4g}, min {float(last.min()):.4g}"
            )
        if settled.any():
            when = physical(self.settled)[settled]
            lines.append(
                f"  {int(settled.sum())} have settled, from t = {float(when.min()):.6g} to "
                f"{float(when.max()):.6g}"
            )
        if not finished.all():
            first, last = reached[~finished].min(), reached[~finished].max()
            lines.append(
                f"  NaN after t = {float(first):.6g} to {float(last):.6g}: {int((~finished).sum())}"
            )
        return "\n".join(lines)

    __str__ = __repr__

    def plot(
        self,
        circuit: int | tuple[int, ...] | None = None,
        *,
        neurons: Sequence[int] | None = None,
        quantity: str = "rates",
        ax: "Axes | None" = None,
    ) -> "Axes":
        """Draw one circuit's neurons against time, with matplotlib.

        Args:
            circuit: Index of the circuit in the batch; may be left out where there is one.
            neurons: Indices of the neurons; None draws all.
            quantity: ``"rates"``, ``"y"``, ``"a"``, or of moving gains ``"b"``, ``"b0"``.
            ax: Axes to draw on; None makes new ones.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: An argument does not fit; the message names it.
        """
        moving = [name for name in ("b", "b0") if getattr(self, name) is not None]
        check_choice("quantity", quantity, ("rates", "y", "a", *moving))
        values = physical(getattr(self, quantity))
        batch, n = values.shape[1:-1], values.shape[-1]
        index = (circuit,) if isinstance(circuit, int) else circuit
        if index is None:
            if batch.numel() != 1:
                raise ValueError(
                    f"circuit: got None, expected an index into circuits of shape {tuple(batch)}"
                )
            index = (0,) * len(batch)
        inside = len(index) == len(batch) and all(
            -size <= place < size for place, size in zip(index, batch, strict=True)
        )
        if not inside:
            raise ValueError(
                f"circuit: got {circuit}, expected an index into circuits of shape {tuple(batch)}"
            )
        chosen = list(range(n)) if neurons is None else list(neurons)
        if not all(-n <= neuron < n for neuron in chosen):
            raise ValueError(f"neurons: got {chosen}, expected indices of {n} neurons")
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                "plot() draws with matplotlib, which is not installed: pip install matplotlib"
            ) from error
        if ax is None:
            _, ax = pyplot.subplots()
        series = values.reshape(len(values), -1, n)[:, _flat_index(index, batch)][:, chosen]
        ax.plot(physical(self.t).cpu().numpy(), series.cpu().numpy())
        ax.set(xlabel="time", ylabel=_QUANTITIES[quantity])
        return ax


def _flat_index(index: Sequence[int], batch: Sequence[int]) -> int:
    flat = 0
    for place, size in zip(index, batch, strict=True):
        flat = flat * size + place % size
    return flat


def _flatten(trajectory: Trajectory) -> tuple[list[Tensor], None]:
    return list(trajectory), None


def _unflatten(parts: Any, _: None) -> tuple[Tensor, ...]:
    """Derivatives of states are no trajectory: what comes out of a transform is a plain tuple."""
    return tuple(parts)


_pytree.register_pytree_node(Trajectory, _flatten, _unflatten)
