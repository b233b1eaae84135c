"""How fast the paper's Algorithm 1 finds the steady states of random circuits (its Fig. 4)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deq_organics import Circuit, scale_to_singular_value, simulate
from deq_organics.problem import Problem
from deq_organics.steady_state import Solution
from deq_organics.steady_state.methods.algorithm1 import solve_algorithm1
from deq_organics.steady_state.methods.normalized import solve_normalized
from program.errors import ExampleError
from program.pictures import BLUE, GREEN, VERMILION, letter_panels

NEURONS = 10
CIRCUITS = 1000
ITERATIONS = 25
SHOWN_ITERATIONS = 15
SIMULATED_TIME, STEP = 200.0, 0.2
SETTLED_RESIDUAL = 1e-10
SMALLEST_RESIDUAL = 1e-13
START_DEVIATION = 0.5

Solver = Callable[[Problem, float, int], Solution]


@dataclass(frozen=True)
class SettledCircuits:
    """Random circuits that have settled in a simulation from random initial states.

    Attributes:
        problem: `N` circuits of `n` neurons of each type.
        state: where they have settled, `(N, 2n)`, y and then a.
        unsettled: how many more were simulated and have not.
    """

    problem: Problem
    state: Tensor
    unsettled: int

    def largest_real_part(self) -> float:
        """The largest real part of all eigenvalues of all Jacobians, in 1/tau."""
        jacobian = self.problem.jacobian(*self.state.chunk(2, -1))
        return float(torch.linalg.eigvals(jacobian).real.max())


def draw_circuits(count: int, generator: torch.Generator) -> Circuit:
    """Circuits as the paper draws them, with time constants of 1.

    The entries of b, b0, sigma and W are uniform in (0, 1), Wr is Gaussian and scaled to a largest
    singular value of 1, z has a random direction and a norm that is uniform in (0, 1).
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    b, b0, sigma = (uniform(NEURONS) for _ in range(3))
    w, wr, z = uniform(NEURONS, NEURONS), normal(NEURONS, NEURONS), normal(NEURONS)
    z = uniform(1) * z / z.norm(dim=-1, keepdim=True)
    return Circuit(b * z, (b0 * sigma) ** 2, scale_to_singular_value(wr), w)


def settle_circuits(count: int, generator: torch.Generator) -> SettledCircuits:
    """Draws circuits and simulates them from y normal and a uniform in (0, 1).

    The step is fixed: a circuit that does not settle then spoils no other, and where one settles
    its fixed point is that of the differential equation.
    """
    circuit = draw_circuits(count, generator)
    y0 = START_DEVIATION * torch.randn(count, NEURONS, generator=generator, dtype=torch.float64)
    a0 = torch.rand(count, NEURONS, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, SIMULATED_TIME], dtype=torch.float64)
    y, a = simulate(
        circuit, t, y0, a0, method="rk4", on_failure="ignore", options={"step_size": STEP}
    )
    problem = circuit.flatten()
    settled = problem.relative_residual(y[-1], a[-1]) <= SETTLED_RESIDUAL
    if not settled.any():
        raise ExampleError(f"none of {count} random circuits has settled; expected most of them")
    state = torch.cat([y[-1], a[-1]], -1)[settled]
    return SettledCircuits(problem.select(settled), state, int((~settled).sum()))


def iterate(solver: Solver, problem: Problem, iterations: int) -> Tensor:
    """A solver's states `(iterations + 1, N, 2n)` after 0, 1, ... iterations at most."""
    solutions = [solver(problem, SMALLEST_RESIDUAL, count) for count in range(iterations + 1)]
    return torch.stack([torch.cat([found.y, found.a], -1) for found in solutions])


def draw_convergence(count: int, generator: torch.Generator) -> tuple[Figure, str]:
    """Draws Fig. 4 for some random circuits; returns it, and the errors in words."""
    circuits = settle_circuits(count, generator)
    paper = iterate(solve_algorithm1, circuits.problem, ITERATIONS)
    fast = iterate(solve_normalized, circuits.problem, ITERATIONS)
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    panels = list(figure.subplots(2, 2).flat)
    errors = (paper - circuits.state).norm(dim=-1)
    _draw_errors(panels[0], errors, (fast - circuits.state).norm(dim=-1))
    _draw_weights(panels[1], circuits.problem.recurrent_matrix()[0])
    _draw_iterates(panels[2], paper[: SHOWN_ITERATIONS + 1, 0], circuits.state[0])
    _draw_overlap(panels[3], paper[SHOWN_ITERATIONS], circuits.state)
    letter_panels(panels)
    shown = [
        f"{k} iterations: mean {errors[k].mean():.1e}, s.d. {errors[k].std():.1e}, "
        f"largest {errors[k].max():.1e}"
        for k in (5, 10, SHOWN_ITERATIONS)
    ]
    simulated = f"{len(circuits.state):,} of {count:,} circuits settle in a simulation"
    stable = f"largest real part {circuits.largest_real_part():+.3f}/τ"
    return figure, "\n".join([f"{simulated}, {stable}", *shown])


def _draw_errors(axes: Axes, paper: Tensor, fast: Tensor) -> None:
    """Draws errors `(K + 1, N)` of Algorithm 1 and of this library's iteration."""
    iterations = range(len(paper))
    mean, deviation = paper.mean(-1), paper.std(-1)
    axes.errorbar(
        iterations,
        mean.tolist(),
        # Downwards the deviation, which is larger than the mean, has no end on this scale.
        yerr=[[0.0] * len(mean), deviation.tolist()],
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=2,
        label="Algorithm 1: mean, and mean + 1 s.d.",
    )
    axes.plot(
        iterations,
        paper.amax(-1).tolist(),
        color=VERMILION,
        marker="^",
        markersize=4,
        label="Algorithm 1: largest",
    )
    axes.plot(
        iterations,
        fast.amax(-1).tolist(),
        color=GREEN,
        linestyle="dashed",
        label="this library's iteration: largest",
    )
    axes.plot(
        iterations,
        fast.mean(-1).tolist(),
        color=GREEN,
        linestyle="dotted",
        label="this library's iteration: mean",
    )
    axes.set(
        xlabel="iterations",
        ylabel="error |(y, a) - simulated|",
        yscale="log",
        title=f"{paper.shape[1]:,} random circuits",
    )
    # Room for the legend.
    axes.set_ylim(top=1e5)
    axes.legend(fontsize="small")


def _draw_weights(axes: Axes, weights: Tensor) -> None:
    """Draws a recurrent matrix `(n, n)`."""
    limit = float(weights.abs().max())
    image = axes.imshow(weights.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, label="weight", shrink=0.9)
    ticks = range(0, len(weights), 3)
    labels = [str(index + 1) for index in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="from neuron", ylabel="to neuron", title="a recurrent weight matrix $W_r$")


def _draw_iterates(axes: Axes, states: Tensor, settled: Tensor) -> None:
    """Draws one circuit's iterates `(K + 1, 2n)` and where simulation takes it, `(2n,)`."""
    steps = len(states) - 1
    for name, colour, style, part, end in (
        ("y", BLUE, "solid", states[:, :NEURONS], settled[:NEURONS]),
        ("a", VERMILION, "dashed", states[:, NEURONS:], settled[NEURONS:]),
    ):
        lines = axes.plot(part.numpy(), color=colour, linestyle=style, linewidth=1.1)
        lines[0].set_label(f"{name} neurons")
        axes.plot(
            [steps] * NEURONS,
            end.numpy(),
            color=colour,
            linestyle="none",
            marker="o",
            markerfacecolor="none",
            clip_on=False,
            label=f"{name}, simulated",
        )
    axes.set(
        xlabel="iterations",
        ylabel="approximate steady state",
        title="one circuit, a line per neuron",
        xlim=(0, steps),
    )
    axes.margins(y=0.25)
    axes.legend(fontsize="small", ncols=2, loc="upper right")


def _draw_overlap(axes: Axes, states: Tensor, settled: Tensor) -> None:
    """Draws all neurons' states after some iterations against the simulated ones, `(N, 2n)`."""
    limits = [float(settled.min()), float(settled.max())]
    axes.plot(limits, limits, color="black", linewidth=1)
    for name, colour, marker, column in (
        ("y", BLUE, "o", slice(None, NEURONS)),
        ("a", VERMILION, "^", slice(NEURONS, None)),
    ):
        axes.plot(
            settled[:, column].flatten().numpy(),
            states[:, column].flatten().numpy(),
            color=colour,
            linestyle="none",
            marker=marker,
            markersize=3,
            alpha=0.5,
            label=f"{name} neurons",
        )
    axes.set(
        xlabel="simulated steady state",
        ylabel=f"after {SHOWN_ITERATIONS} iterations",
        title=f"all circuits; largest distance {float((states - settled).abs().max()):.0e}",
    )
    axes.legend(fontsize="small")
