"""What a sequence module computes, written anew: a loop that shares no code with the library."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recurrent import ORGaNICsRNN, State

__all__ = ["oracle"]


def oracle(rnn: ORGaNICsRNN, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Output and last state for ``x (T, B, k)`` and ``state`` of ``(layers, B, n)`` each."""
    finals = []
    rows = list(x)
    for layer in range(rnn.num_layers):
        cell: Any = rnn.cells[layer]
        y, a, b, b0 = (part[layer] for part in state)
        known = {**dict(cell.named_parameters()), **dict(cell.named_buffers())}

        def free(name: str, known: dict[str, Any] = known) -> Any:
            return known.get(name, known.get(f"parametrizations.{name}.original"))

        least = 1 / 200 if cell.recurrence == "bounded" else 0.0

        def step_size(
            name: str,
            most: float,
            known: dict[str, Any] = known,
            free: Callable[..., Any] = free,
            least: float = least,
        ) -> Any:
            learned = f"parametrizations.{name}.original" in known
            part = least + (1 - least) / (1 + torch.exp(-free(name)))
            return most * part if learned else free(name)

        n = rnn.hidden_size
        wr = torch.eye(n, dtype=x.dtype)
        if cell.recurrence != "identity":
            wr = free("recurrent_weight")
        if cell.recurrence == "spectral":
            wr = wr / torch.linalg.svdvals(wr)[0].clamp(min=1)
        w = 1 / (1 + torch.exp(-free("normalization_weight")))
        wzx = free("input_weight")
        if cell.recurrence == "bounded":
            bounds = {
                name: getattr(cell.parametrizations, name).constraint.bound
                for name in ("input_weight", "recurrent_weight", "normalization_weight")
            }
            nonnegative = cell.model.rectified and cell.rectifier == "before_weights"
            wzx = _within(wzx, bounds["input_weight"])
            w = _within(w, bounds["normalization_weight"])
            wr = _recurrent_within(wr, bounds["recurrent_weight"], nonnegative)
        sigma = free("semisaturation")
        k_y = step_size("step_y", cell.max_steps["y"])
        k_a = step_size("step_a", cell.max_steps["a"])
        outputs = []
        for row in rows:
            z = torch.einsum("ij,bj->bi", wzx, row)
            active = y
            if cell.model.rectified:
                z = torch.where(z > 0, z, 0.0)
                active = torch.where(y > 0, y, 0.0)
            source = y if cell.rectifier == "after_weights" else active
            u = torch.einsum("ij,bj->bi", wr, source)
            if cell.rectifier == "after_weights":
                u = torch.where(u > 0, u, 0.0)
            above = a > 0
            root = torch.where(above, torch.where(above, a, 1.0) ** 0.5, 0.0)
            pool = active**2 * torch.where(above, a, 0.0)
            new_y = y + k_y * (b * z - y + (1 - root) * u)
            new_a = a + k_a * ((b0 * sigma) ** 2 - a + torch.einsum("ij,bj->bi", w, pool))
            if cell.input_gain == "dynamic":
                gains = []
                for gain, name, prefix in ((b, "b", "gain"), (b0, "b0", "baseline_gain")):
                    total: Any = sum(
                        torch.einsum("ij,bj->bi", free(f"{prefix}_weight_{part}"), value)
                        for part, value in (("x", row), ("y", y), ("a", a))
                    )
                    size = step_size(f"step_{name}", cell.max_steps["b"])
                    gains.append(gain + size * (1 / (1 + torch.exp(-total)) - gain))
                b, b0 = gains
            y, a = new_y, new_a
            outputs.append(torch.where(y > 0, y, 0.0) ** 2 if rnn.readout == "rates" else y)
        finals.append((y, a, b, b0))
        rows = outputs
    return torch.stack(rows), State(*(torch.stack(parts) for parts in zip(*finals, strict=True)))


def _within(weight: Tensor, bound: float) -> Tensor:
    """Each row as it is, or scaled down until its absolute values sum to the bound."""
    rows = [row if row.abs().sum() <= bound else row * (bound / row.abs().sum()) for row in weight]
    return torch.stack(rows)


def _recurrent_within(weight: Tensor, bound: float, nonnegative: bool) -> Tensor:
    """The diagonal by tanh; the rest of each row, signs apart or together, within what is left."""
    rows = []
    for i, row in enumerate(weight):
        own = bound * torch.tanh(row[i])
        entries = []
        for j, value in enumerate(row):
            others = [row[k] for k in range(len(row)) if k != i]
            if nonnegative:
                others = [other for other in others if (other < 0) == (value < 0)]
            taken = own.abs() if not nonnegative or (own < 0) == (value < 0) else 0 * own
            total = sum((other.abs() for other in others), 0 * own)
            fits = bool(total <= bound - taken)
            entries.append(own if i == j else value if fits else value * ((bound - taken) / total))
        rows.append(torch.stack(entries))
    return torch.stack(rows)
