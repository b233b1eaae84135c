"""The table and the picture of a survey of stability."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from program.pictures import COLOURS, save
from survey.conditions import WEIGHTS, Condition
from survey.verdicts import Verdict

Totals = Mapping[Condition, Mapping[str, int]]


def interval(successes: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a probability."""
    limits = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return float(limits.low), float(limits.high)


def render_table(totals: Totals) -> str:
    """One line a condition: the counts, and the stable share with its confidence interval."""
    head = (
        "   n  weights            |Wr|  |z|  sigma  circuits     unstable  none  undecided"
        "  stable % (95 % interval)"
    )
    lines = [head, "-" * len(head)]
    for condition, counts in totals.items():
        total = sum(counts.values())
        stable = counts[str(Verdict.STABLE)]
        low, high = interval(stable, total)
        lines.append(
            f"{condition.n:4d}  {condition.weights:18s} {condition.singular_value:4g} "
            f"{condition.input_norm:4g}  {condition.semisaturation:5g}  {total:8,}  "
            f"{counts[str(Verdict.UNSTABLE)]:11,} {counts[str(Verdict.NO_STEADY_STATE)]:5,} "
            f"{counts[str(Verdict.UNDECIDED)]:10,}  {100 * stable / total:8.4f} "
            f"({100 * low:.4f} to {100 * high:.4f})"
        )
    undecided = sum(counts[str(Verdict.UNDECIDED)] for counts in totals.values())
    total = sum(sum(counts.values()) for counts in totals.values())
    lines.append(f"undecided: {undecided} of {total:,}")
    return "\n".join(lines)


def plot_survey(totals: Totals, path: Path) -> None:
    """Draws the share of circuits without a stable state against the largest singular value."""
    panels = sorted({(c.n, c.input_norm, c.semisaturation) for c in totals})
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (n, norm, sigma) in zip(grid.flat, panels, strict=False):
        for kind, (weights, colour) in enumerate(zip(WEIGHTS, COLOURS, strict=True)):
            cells = {
                c.singular_value: counts
                for c, counts in totals.items()
                if (c.n, c.input_norm, c.semisaturation, c.weights) == (n, norm, sigma, weights)
            }
            _draw_line(axes, cells, 0.025 * (kind - 1.5), weights, colour)
        axes.set(title=f"n = {n}, |z| = {norm:g}, $\\sigma \\leq$ {sigma:g}", yscale="log")
        axes.set_xticks(sorted({c.singular_value for c in totals}))
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(WEIGHTS), frameon=False)
    figure.supxlabel("largest singular value of Wr")
    figure.supylabel("share without a stable steady state\n(▽: none found, 95 % limit)")
    save(figure, path)


def _draw_line(
    axes: Axes, cells: Mapping[float, Mapping[str, int]], shift: float, label: str, colour: str
) -> None:
    """One kind of weights: points with intervals, and the upper limit where none was found."""
    axes.plot([], [], color=colour, marker="o", label=label)
    values = sorted(cells)
    totals = [sum(cells[value].values()) for value in values]
    without = [sum(cells[v].values()) - cells[v][str(Verdict.STABLE)] for v in values]
    known = [index for index, count in enumerate(without) if count]
    shares = [without[i] / totals[i] for i in known]
    limits = [interval(without[i], totals[i]) for i in known]
    axes.errorbar(
        [values[i] + shift for i in known],
        shares,
        yerr=[
            [share - low for share, (low, _) in zip(shares, limits, strict=True)],
            [high - share for share, (_, high) in zip(shares, limits, strict=True)],
        ],
        color=colour,
        marker="o",
        markersize=4,
    )
    none = [index for index, count in enumerate(without) if not count]
    axes.plot(
        [values[i] + shift for i in none],
        [interval(0, totals[i])[1] for i in none],
        color=colour,
        marker="v",
        markerfacecolor="white",
        linestyle="",
    )
