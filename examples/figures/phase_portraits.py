"""Phase portraits of circuits with one neuron of each type (the paper's Figs. 1 and 3)."""

import dataclasses
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from deq_organics import Circuit, fixed_points_2d, simulate
from program.pictures import BLUE, GREEN, PURPLE, VERMILION, letter_panels

GAIN, DRIVE, NORMALIZATION = 0.5, 1.0, 1.0
GRID = 201
SHOWN_TIME, DOT_EVERY = 120.0, 2.0  # ms
STEPS_A_DOT = 10
STREAMS = "#B0B0B0"
_MARKER: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black"}
STABLE = _MARKER | {"marker": "*", "markersize": 15, "color": VERMILION}
UNSTABLE = _MARKER | {"marker": "o", "markersize": 8, "color": "black"}

Range = tuple[float, float]


@dataclass(frozen=True)
class Portrait:
    """What one panel shows.

    Attributes:
        title: what sets its circuit apart.
        circuit: one neuron of each type, time constants in ms.
        y: the membrane potentials of the principal neuron that are shown.
        a: those of the inhibitory neuron, positive.
        inset: a part, y and then a, that is also shown enlarged.
        starts: (y, a) of trajectories.
    """

    title: str
    circuit: Circuit
    y: Range
    a: Range
    inset: tuple[Range, Range] | None = None
    starts: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class FixedPoint:
    """A fixed point of the circuit of a panel; the leading eigenvalue is in 1/ms."""

    y: float
    a: float
    stable: bool
    leading: complex

    def __str__(self) -> str:
        turning = f" ± {abs(self.leading.imag):.3f}i" if self.leading.imag else ""
        return (
            f"{'stable' if self.stable else 'unstable'} at y = {self.y:.3f}, a = {self.a:.3g}, "
            f"leading eigenvalue {self.leading.real:+.3f}{turning} /ms"
        )


def make_circuit(
    wr: float,
    baseline_gain: float,
    sigma: float,
    *,
    tau_y: float = 2.0,
    tau_a: float = 2.0,
    rectified: bool,
) -> Circuit:
    """The circuit of Eq. 16 or, rectified, Eq. 102, with the paper's b, z and w."""
    one = torch.ones(1, dtype=torch.float64)
    return Circuit(
        GAIN * DRIVE * one,
        (baseline_gain * sigma) ** 2,
        wr * one[None],
        NORMALIZATION * one[None],
        tau_y=tau_y,
        tau_a=tau_a,
        rectified=rectified,
    )


def recurrence_portraits() -> list[Portrait]:
    """The six panels of Fig. 1: the main model, then the rectified one."""
    columns: list[tuple[float, float, float, Range, Range, tuple[Range, Range] | None]] = [
        (0.5, 0.5, 0.1, (0.5, 1.2), (0.0, 0.06), None),
        (2.0, 0.5, 0.1, (-1.5, 1.5), (0.0, 1.0), ((-1.12, -0.4), (0.0, 0.1))),
        (2.0, 1.0, 1.0, (-0.2, 1.0), (0.6, 2.0), None),
    ]
    return [
        Portrait(
            f"{model}: $w_r$ = {wr:g}, $b_0$ = {gain:g}, $\\sigma$ = {sigma:g}",
            make_circuit(wr, gain, sigma, rectified=rectified),
            y,
            a,
            inset=None if rectified else inset,
        )
        for model, rectified in (("main", False), ("rectified", True))
        for wr, gain, sigma, y, a, inset in columns
    ]


def time_constant_portraits() -> list[Portrait]:
    """The three panels of Fig. 3, with trajectories."""
    starts = ((0.2, 0.1), (0.6, 0.6))
    return [
        Portrait(
            f"$τ_a$ = {tau_a:g} ms, $τ_y$ = {tau_y:g} ms",
            make_circuit(1.0, 0.5, 0.1, tau_y=tau_y, tau_a=tau_a, rectified=True),
            (0.0, 1.8),
            (0.0, 1.0),
            starts=starts,
        )
        for tau_a, tau_y in ((2.0, 2.0), (10.0, 2.0), (2.0, 10.0))
    ]


def find_fixed_points(circuit: Circuit) -> list[FixedPoint]:
    """All fixed points of a circuit with one neuron of each type."""
    found = fixed_points_2d(circuit)
    points = []
    for y, a, stable in zip(found.y, found.a, found.stable.tolist(), strict=True):
        if y.isfinite():
            eigenvalues = torch.linalg.eigvals(circuit.jacobian(y[None], a[None]))
            leading = complex(eigenvalues[eigenvalues.real.argmax()])
            points.append(FixedPoint(float(y), float(a), stable, leading))
    return points


def draw_portraits(portraits: Sequence[Portrait], grid: int = GRID) -> tuple[Figure, str]:
    """Draws panels, three in a row.

    Args:
        portraits: what they show.
        grid: points along each axis at which the nullclines' functions are evaluated.

    Returns:
        The figure, and the fixed points of each panel in words.
    """
    rows = len(portraits) // 3
    figure = Figure(figsize=(11, 3.3 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, 3).flat)
    fixed_points = [find_fixed_points(portrait.circuit) for portrait in portraits]
    for axes, portrait, points in zip(panels, portraits, fixed_points, strict=True):
        _draw_plane(axes, portrait, portrait.y, portrait.a, points, grid)
        _draw_trajectories(axes, portrait)
        axes.set(title=portrait.title, xlabel="principal neuron y", ylabel="inhibitory neuron a")
        if portrait.inset is not None:
            _draw_inset(axes, portrait, points, grid)
    letter_panels(panels)
    handles = [
        Line2D([], [], color=STREAMS, linewidth=1, label="flow"),
        Line2D([], [], color=BLUE, label="dy/dt = 0"),
        Line2D([], [], color=GREEN, linestyle="dashed", label="da/dt = 0"),
        Line2D([], [], **STABLE, label="stable"),
    ]
    if not all(point.stable for points in fixed_points for point in points):
        handles.append(Line2D([], [], **UNSTABLE, label="unstable"))
    if any(portrait.starts for portrait in portraits):
        label = f"trajectories, a dot every {DOT_EVERY:g} ms"
        handles.append(Line2D([], [], color=PURPLE, marker=".", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure, "\n".join(
        f"({letter}) {'; '.join(map(str, points))}"
        for letter, points in zip(string.ascii_lowercase, fixed_points, strict=False)
    )


def _draw_plane(
    axes: Axes,
    portrait: Portrait,
    y: Range,
    a: Range,
    points: Sequence[FixedPoint],
    grid: int,
) -> None:
    """Draws flow, nullclines and fixed points in a part of the plane."""
    y_grid = torch.linspace(*y, grid, dtype=torch.float64)
    a_grid = torch.linspace(*a, grid, dtype=torch.float64)
    speed_y, speed_a = _flow(portrait.circuit, y_grid, a_grid)
    axes.streamplot(
        y_grid.numpy(),
        a_grid.numpy(),
        speed_y.numpy(),
        speed_a.numpy(),
        color=STREAMS,
        linewidth=0.7,
        arrowsize=0.8,
        density=0.9,
    )
    plane = (y_grid.numpy(), a_grid.numpy())
    axes.contour(*plane, speed_y.numpy(), levels=[0.0], colors=BLUE, linewidths=1.8)
    axes.contour(
        *plane, speed_a.numpy(), levels=[0.0], colors=GREEN, linewidths=1.8, linestyles="dashed"
    )
    for point in points:
        if y[0] <= point.y <= y[1] and a[0] <= point.a <= a[1]:
            axes.plot(
                point.y, point.a, **(STABLE if point.stable else UNSTABLE), clip_on=False, zorder=5
            )
    axes.set(xlim=y, ylim=a)


def _flow(circuit: Circuit, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The velocities at each point of a grid, `(len(a), len(y))`, per ms."""
    a_plane, y_plane = torch.meshgrid(a, y, indexing="ij")
    speed_y, speed_a = circuit.vector_field(y_plane.unsqueeze(-1), a_plane.unsqueeze(-1))
    return speed_y.squeeze(-1), speed_a.squeeze(-1)


def _draw_trajectories(axes: Axes, portrait: Portrait) -> None:
    """Draws how the circuit settles from its starts, with dots at equal distances of time."""
    if not portrait.starts:
        return
    y0, a0 = torch.tensor(portrait.starts, dtype=torch.float64).unsqueeze(-1).unbind(1)
    drive = portrait.circuit.input_drive.expand(len(y0), 1)
    circuits = dataclasses.replace(portrait.circuit, input_drive=drive)
    steps = round(SHOWN_TIME / DOT_EVERY) * STEPS_A_DOT
    t = torch.linspace(0, SHOWN_TIME, steps + 1, dtype=torch.float64)
    y, a = (values.squeeze(-1).numpy() for values in simulate(circuits, t, y0, a0))
    axes.plot(y, a, color=PURPLE, linewidth=1.4)
    axes.plot(y[::STEPS_A_DOT], a[::STEPS_A_DOT], color=PURPLE, linestyle="none", marker=".")


def _draw_inset(axes: Axes, portrait: Portrait, points: Sequence[FixedPoint], grid: int) -> None:
    """Enlarges a part of a panel in its upper left, where nothing else is."""
    assert portrait.inset is not None
    inset = axes.inset_axes((0.06, 0.52, 0.4, 0.45), zorder=6)
    _draw_plane(inset, portrait, *portrait.inset, points, grid)
    inset.set(xticks=[], yticks=[])
    axes.indicate_inset_zoom(inset, edgecolor="black")
