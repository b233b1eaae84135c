"""Random circuits at fixed points that are known, and their spectra by other code than ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deq_organics import Circuit

__all__ = ["RECURRENCES", "Draw", "at_fixed_points", "driven", "spectra"]

D = torch.float64
Array = NDArray[Any]
Draws = Callable[..., Tensor]


class Draw(NamedTuple):
    """What a batch of circuits is drawn from."""

    recurrence: str
    n: int
    decades: float
    """Over which the time constants are spread, one per neuron."""
    norm: float
    """Largest singular value of Wr."""
    exponent: float
    rectified: bool
    shared: bool
    """Whether the batch shares its weights."""


def _gaussian(n: int, uniform: Draws, normal: Draws) -> Tensor:
    return normal(n, n)


def _orthogonal(n: int, uniform: Draws, normal: Draws) -> Tensor:
    basis, triangle = torch.linalg.qr(normal(n, n))
    # The signs that a QR factorization leaves open differ between libraries.
    return basis * triangle.diagonal().sign()


def _circulant(n: int, uniform: Draws, normal: Draws) -> Tensor:
    row = normal(n)
    return torch.stack([row.roll(shift) for shift in range(n)])


def _low_rank(n: int, uniform: Draws, normal: Draws) -> Tensor:
    rank = max(1, n // 8)
    return normal(n, rank) @ normal(rank, n)


def _nearly_defective(n: int, uniform: Draws, normal: Draws) -> Tensor:
    """Chains of up to four equal eigenvalues, in a basis of random directions."""
    chained = torch.ones(n, dtype=D)
    chained[3::4] = 0.0
    matrix = torch.diag(uniform((n + 3) // 4).repeat_interleave(4)[:n])
    matrix = matrix + torch.diag(chained[:-1], 1) + 1e-8 * normal(n, n)
    basis = _orthogonal(n, uniform, normal)
    return basis @ matrix @ basis.T


def _near_identity(n: int, uniform: Draws, normal: Draws) -> Tensor:
    return torch.eye(n, dtype=D) + 0.1 * normal(n, n) / n**0.5


def _identity(n: int, uniform: Draws, normal: Draws) -> Tensor:
    return torch.eye(n, dtype=D)


RECURRENCES: dict[str, Callable[[int, Draws, Draws], Tensor]] = {
    "identity": _identity,
    "near identity": _near_identity,
    "Gaussian": _gaussian,
    "orthogonal": _orthogonal,
    "circulant": _circulant,
    "low-rank": _low_rank,
    "nearly defective": _nearly_defective,
}


def _parts(
    draw: Draw, batch: int, generator: torch.Generator
) -> tuple[Draws, Draws, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=D)

    n, lead = draw.n, () if draw.shared else (batch,)

    def recurrent_weight() -> Tensor:
        wr = RECURRENCES[draw.recurrence](n, uniform, normal)
        if draw.recurrence == "identity":
            return wr
        return draw.norm * wr / torch.linalg.matrix_norm(wr, 2)

    wr = (
        recurrent_weight()
        if draw.shared
        else torch.stack([recurrent_weight() for _ in range(batch)])
    )
    w, c = uniform(*lead, n, n), 0.01 + 0.5 * uniform(*lead, n).square()
    tau_y, tau_a = (10.0 ** (draw.decades * (uniform(*lead, n) - 0.5)) for _ in range(2))
    return uniform, normal, wr, w, c, tau_y, tau_a


def at_fixed_points(
    draw: Draw, batch: int, generator: torch.Generator
) -> tuple[Circuit, Tensor, Tensor]:
    """Circuits whose input drive is such that the state ``(y, a)`` is a fixed point, stable or not.

    The normalized drives ``v = a+ y`` are drawn, over two decades of length.
    """
    uniform, normal, wr, w, c, tau_y, tau_a = _parts(draw, batch, generator)
    n, m = draw.n, draw.exponent
    v = normal(batch, n) / n**0.5 * 10.0 ** (2.0 * uniform(batch, 1) - 1.0)
    active = v.relu() if draw.rectified else v
    a = c + (w @ active.abs().pow(m).unsqueeze(-1)).squeeze(-1)
    s = a.pow(1.0 / m)
    y = v / s
    driving = y.relu() if draw.rectified else y
    d = y - (1.0 - s) * (wr @ driving.unsqueeze(-1)).squeeze(-1)
    return Circuit(d, c, wr, w, tau_y, tau_a, m, draw.rectified), y, a


def driven(draw: Draw, batch: int, generator: torch.Generator) -> Circuit:
    """Circuits with drives of random directions and lengths, to be solved."""
    uniform, normal, wr, w, c, tau_y, tau_a = _parts(draw, batch, generator)
    d = torch.nn.functional.normalize(normal(batch, draw.n), dim=-1)
    d = d * 10.0 ** (2.0 * uniform(batch, 1) - 1.0)
    d = d.abs() if draw.rectified else d
    return Circuit(d, c, wr, w, tau_y, tau_a, draw.exponent, draw.rectified)


def spectra(circuit: Circuit, y: Tensor, a: Tensor) -> tuple[Array, Array]:
    """All eigenvalues ``(B, 2n)`` by numpy, and how far they are to be trusted ``(B,)``.

    Of Jacobians by complex steps of a vector field that is written down here once more. Trusted to
    the difference of the leading real part from that of the transposed Jacobian with its rows and
    columns scaled.
    """
    n, batch = circuit.n, y.shape[0]
    found, doubts = [], []
    for k in range(batch):
        own = [
            _row(part, k, core)
            for part, core in (
                (circuit.input_drive, 1),
                (circuit.inhibitory_drive, 1),
                (circuit.recurrent_weight, 2),
                (circuit.normalization_weight, 2),
                (circuit.tau_y, 1),
                (circuit.tau_a, 1),
            )
        ]
        jacobian = _complex_steps(own, y[k].numpy(), a[k].numpy(), circuit)
        values = np.linalg.eigvals(jacobian)
        scale = np.exp(np.linspace(-1.0, 1.0, 2 * n))
        other = np.linalg.eigvals((scale[:, None] * jacobian / scale).T)
        found.append(values)
        doubts.append(abs(values.real.max() - other.real.max()))
    return np.stack(found), np.array(doubts)


def _row(part: Tensor | None, index: int, core: int) -> Array:
    assert part is not None
    return (part[index] if part.ndim > core else part).numpy()


def _complex_steps(own: list[Array], y: Array, a: Array, circuit: Circuit) -> Array:
    d, c, wr, w, tau_y, tau_a = own
    n, m, step = len(y), circuit.exponent, 1e-30
    states = np.concatenate([y, a])[:, None] + 1j * step * np.eye(2 * n)
    p, q = states[:n], states[n:]
    # Powers of |p|, analytically around real arguments.
    active = np.where(p.real > 0, p, 0.0) if circuit.rectified else p * np.sign(p.real)
    driving = active if circuit.rectified else p
    gain = 1.0 - q ** (1.0 / m)
    with np.errstate(divide="ignore", invalid="ignore"):
        pool = np.where(active == 0, 0.0, active**m) * q
    flow_y = d[:, None] - p + gain * (wr @ driving)
    flow_a = c[:, None] - q + w @ pool
    flows = np.concatenate([flow_y / tau_y[:, None], flow_a / tau_a[:, None]])
    return flows.imag / step
