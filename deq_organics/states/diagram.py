"""What a continuation returns: branches of fixed points, their bifurcations, and cycles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import equations
from ..checks import check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BifurcationPoint", "Branch", "Continuation", "CyclesAlong"]

_LABELS = {"rates": "firing rate y+", "y": "membrane potential y", "a": "membrane potential a"}
_MARKS = {"fold": "s", "hopf": "o", "branch point": "D"}


@dataclass(frozen=True)
class BifurcationPoint:
    """Where a branch turns back, or the stability along it changes."""

    kind: str
    """``"fold"``: two fixed points merge; ``"hopf"``: a pair of eigenvalues crosses the imaginary
    axis; ``"branch point"``: a real one does, and the branch does not turn."""
    value: float
    """Of the parameter."""
    y: Tensor
    """``(n,)``"""
    a: Tensor
    """``(n,)``"""
    frequency: float
    """With which the oscillation at a Hopf point starts, in 1/time; 0 for others."""
    branch: int
    """Index of the branch that it lies on."""


@dataclass(frozen=True)
class Branch:
    """Fixed points in their order along one curve."""

    value: Tensor
    """Of the parameter, ``(P,)``, not monotone where the branch has folds."""
    y: Tensor
    """``(P, n)``"""
    a: Tensor
    """``(P, n)``"""
    stable: Tensor
    """Boolean ``(P,)``: proved to be stable."""
    undecided: Tensor
    """Boolean ``(P,)``: rounding leaves open whether it is stable, as at a bifurcation."""
    leading_eigenvalue: Tensor
    """With the largest real part, complex ``(P,)``, in 1/time."""
    residual: Tensor
    """Relative residual of the equations, ``(P,)``."""
    ends: tuple[str, str]
    """Why the branch ends at its first and at its last point."""


@dataclass(frozen=True)
class CyclesAlong:
    """Stable cycles that were found and verified, each at one of the values."""

    value: Tensor
    """Of the parameter, ``(C,)``."""
    period: Tensor
    """``(C,)``, in the unit of the time constants."""
    lowest_y: Tensor
    """Smallest ``y`` of each neuron, ``(C, n)``."""
    highest_y: Tensor
    """Largest ``y``, ``(C, n)``."""
    lowest_a: Tensor
    """Smallest ``a``, ``(C, n)``."""
    highest_a: Tensor
    """Largest ``a``, ``(C, n)``."""
    amplitude: Tensor
    """Largest minus smallest firing rate ``y+`` of each neuron, ``(C, n)``."""


@dataclass(frozen=True)
class Continuation:
    """Branches of fixed points over a parameter, what happens along them, and stable cycles."""

    values: Tensor
    """The values ``(V,)`` at which fixed points and cycles were looked for."""
    branches: list[Branch]
    points: list[BifurcationPoint]
    """Folds, Hopf points and branch points, of each branch in their order along it."""
    cycles: CyclesAlong
    notes: list[str]
    """What was seen and not followed."""
    exponent: float
    """The circuits' power-law exponent ``m``."""

    @property
    def folds(self) -> list[BifurcationPoint]:
        """Where two fixed points merge."""
        return [point for point in self.points if point.kind == "fold"]

    @property
    def hopf(self) -> list[BifurcationPoint]:
        """Where oscillations start."""
        return [point for point in self.points if point.kind == "hopf"]

    def __str__(self) -> str:
        lines = [
            f"Continuation from {float(self.values[0]):.6g} to {float(self.values[-1]):.6g}: "
            f"{len(self.branches)} branches, {len(self.folds)} folds, {len(self.hopf)} Hopf points"
        ]
        for number, branch in enumerate(self.branches):
            low, high = float(branch.value.min()), float(branch.value.max())
            lines.append(
                f"  branch {number}: from {low:.6g} to {high:.6g}, {len(branch.value)} points, "
                f"{int(branch.stable.sum())} stable, {int(branch.undecided.sum())} undecided"
            )
            lines += [f"    ends: {reason}" for reason in dict.fromkeys(branch.ends)]
            for point in self.points:
                if point.branch == number:
                    more = f", frequency {point.frequency:.6g}" if point.kind == "hopf" else ""
                    lines.append(f"    {point.kind} at {point.value:.9g}{more}")
        if len(self.cycles.value):
            cycles = self.cycles
            lines.append(
                f"  stable cycles at {len(cycles.value)} of the values, from "
                f"{float(cycles.value.min()):.6g} to {float(cycles.value.max()):.6g}: period "
                f"{float(cycles.period.min()):.4g} to {float(cycles.period.max()):.4g}"
            )
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self, neuron: int = 0, *, quantity: str = "rates", ax: "Axes | None" = None) -> "Axes":
        """Draw one neuron's fixed points over the parameter, with matplotlib.

        Lines are solid where the fixed points are stable; bars are the ranges of stable cycles;
        squares are folds, circles Hopf points, diamonds branch points.

        Args:
            neuron: Index of the neuron.
            quantity: ``"rates"``, ``"y"`` or ``"a"``.
            ax: Axes to draw on; None makes new ones.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: An argument does not fit; the message names it.
        """
        check_choice("quantity", quantity, tuple(_LABELS))
        n = self.cycles.lowest_y.shape[-1]
        if not -n <= neuron < n:
            raise ValueError(f"neuron: got {neuron}, expected an index of {n} neurons")
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                "plot() draws with matplotlib, which is not installed: pip install matplotlib"
            ) from error
        if ax is None:
            _, ax = pyplot.subplots()

        def shown(y: Tensor, a: Tensor) -> Tensor:
            value = a if quantity == "a" else y
            if quantity == "rates":
                value = equations.firing_rate(y, self.exponent)
            return value[..., neuron]

        for number, branch in enumerate(self.branches):
            heights, color = shown(branch.y, branch.a), f"C{number}"
            for chosen, style in ((branch.stable, "-"), (~branch.stable, ":")):
                # A segment belongs to the kind of the points at its ends; where they differ, to
                # the dotted one.
                near = chosen.clone()
                if style == ":":
                    near[1:] |= chosen[:-1]
                    near[:-1] |= chosen[1:]
                line = torch.where(near, heights, torch.nan)
                ax.plot(branch.value.numpy(), line.numpy(), style, color=color)
        for point in self.points:
            height = float(shown(point.y, point.a))
            ax.plot([point.value], [height], _MARKS[point.kind], color="black", mfc="white")
        cycles = self.cycles
        if len(cycles.value):
            low, high = (
                shown(cycles.lowest_y, cycles.lowest_a),
                shown(cycles.highest_y, cycles.highest_a),
            )
            ax.vlines(cycles.value.numpy(), low.numpy(), high.numpy(), color="gray")
        ax.set(xlabel="parameter", ylabel=_LABELS[quantity])
        return ax
