"""What circuits are, in words: a representation that fits on a screen, and a table."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import is_transformed, physical
from .problem import Problem

__all__ = ["FORMATS", "represent", "summarize"]

FORMATS = ("plain", "markdown", "latex")

# Of each tensor: its name, its symbol in plain text and in LaTeX.
_ROWS = {
    "input_drive": ("input drive", "d = b z", "d = b z"),
    "inhibitory_drive": ("inhibitory drive", "c = (b0 sigma)^m", r"c = (b_0 \sigma)^m"),
    "recurrent_weight": ("recurrent weights", "Wr", r"W_r"),
    "normalization_weight": ("normalization weights", "W", "W"),
    "tau_y": ("time constants, excitatory", "tau_y", r"\tau_y"),
    "tau_a": ("time constants, inhibitory", "tau_a", r"\tau_a"),
    "exponent": ("exponent", "m", "m"),
}
_SINGULAR = ("largest singular value of Wr", "|Wr|", r"\Vert W_r \Vert")
_HEADS = ("quantity", "symbol", "shape", "smallest", "mean", "largest")
_UNKNOWN = ("?", "?", "?")


class _Row(NamedTuple):
    """A line of the table."""

    quantity: str
    symbol: str
    latex: str
    shape: str
    values: tuple[str, str, str]
    """Smallest, mean and largest."""


def represent(problem: Problem) -> str:
    """A line of what all circuits share, and one for each tensor with its shape and range."""
    drive = problem.input_drive
    lines = [
        f"Circuit(batch_shape={tuple(problem.leading_shape())}, n={drive.shape[-1]}, "
        f"dtype={drive.dtype}, device={drive.device}, rectified={problem.rectified})"
    ]
    for name in _ROWS:
        value = getattr(problem, name)
        if value is None:
            lines.append(f"  {name}: None, the identity")
        elif not isinstance(value, Tensor):
            lines.append(f"  {name}: {value:g}")
        else:
            low, _, high = _range(value)
            span = low if low == high else f"{low} to {high}"
            lines.append(f"  {name}: {_shape(value)}, {span}")
    return "\n".join(lines)


def summarize(problem: Problem, form: str) -> str:
    """The table of all parameters as plain text, Markdown or LaTeX."""
    title, rows = _title(problem), _rows(problem)
    return _WRITERS[form](title, rows)


def _title(problem: Problem) -> str:
    drive, batch = problem.input_drive, problem.leading_shape()
    model = "rectified model (Eq. 87)" if problem.rectified else "main model (Eq. 1)"
    count = f"{batch.numel()} circuit{'' if batch.numel() == 1 else 's'}"
    if batch:
        count += f", leading dimensions {tuple(batch)},"
    dtype = str(drive.dtype).removeprefix("torch.")
    return f"{count} of {drive.shape[-1]} + {drive.shape[-1]} neurons, {model}, {dtype}"


def _rows(problem: Problem) -> list[_Row]:
    rows = []
    for name, words in _ROWS.items():
        value = getattr(problem, name)
        if value is None:
            rows.append(_Row(*words, "identity", ("", "", "")))
        elif isinstance(value, Tensor):
            rows.append(_Row(*words, _shape(value), _range(value)))
        else:
            rows.append(_Row(*words, "number", (f"{value:.4g}",) * 3))
        if name == "recurrent_weight" and value is not None:
            rows.append(_Row(*_SINGULAR, "each circuit", _largest_singular_value(value)))
    return rows


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _largest_singular_value(weight: Tensor) -> tuple[str, str, str]:
    if _hides_values(weight) or weight.numel() == 0:
        return _UNKNOWN
    return _range(torch.linalg.matrix_norm(weight.detach(), 2))


def _range(tensor: Tensor) -> tuple[str, str, str]:
    """Smallest, mean and largest value, where they can be known."""
    if _hides_values(tensor) or tensor.numel() == 0:
        return _UNKNOWN
    values = physical(tensor).double()
    # A mean of huge values may be infinite though none of them is.
    size = values.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    low, mean, high = values.min(), (values / size).mean() * size, values.max()
    return f"{float(low):.4g}", f"{float(mean):.4g}", f"{float(high):.4g}"


def _hides_values(tensor: Tensor) -> bool:
    return tensor.is_meta or is_transformed(tensor)


def _cells(row: _Row) -> tuple[str, ...]:
    return (row.quantity, row.symbol, row.shape, *row.values)


def _plain(title: str, rows: Sequence[_Row]) -> str:
    table = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return "\n".join([title, lines[0], "-" * (sum(widths) + 10), *lines[1:]])


def _markdown(title: str, rows: Sequence[_Row]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = "|---|---|---|---:|---:|---:|"
    return "\n".join([f"{title}\n", line(_HEADS), rule, *(line(_cells(row)) for row in rows)])


def _latex(title: str, rows: Sequence[_Row]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    body = [
        line(
            [
                row.quantity.replace("Wr", "$W_r$"),
                f"${row.latex}$",
                row.shape.replace(",)", ")"),
                *(f"${_scientific(value)}$" if value else "" for value in row.values),
            ]
        )
        for row in rows
    ]
    return "\n".join(
        [
            f"% {title}",
            r"\begin{tabular}{lllrrr}",
            r"\hline",
            line(_HEADS),
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
        ]
    )


def _scientific(value: str) -> str:
    """``1e-05`` as a power of ten."""
    digits, e, power = value.partition("e")
    return rf"{digits} \cdot 10^{{{int(power)}}}" if e else value


_WRITERS: dict[str, Callable[[str, Sequence[_Row]], str]] = {
    "plain": _plain,
    "markdown": _markdown,
    "latex": _latex,
}
