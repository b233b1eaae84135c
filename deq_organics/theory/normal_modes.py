"""Theorem 4.4: eigenvalues in closed form, of equal neurons that normalize each other equally."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import physical
from ..circuit import Circuit

__all__ = ["NormalModes", "normal_modes"]


class NormalModes(NamedTuple):
    """How circuits with ``Wr = I`` and equal neurons return to their steady state."""

    eigenvalues: Tensor
    """All eigenvalues of the Jacobian, complex ``(..., 2n)``, in 1/time, in no particular order."""
    pool: Tensor
    """The two eigenvalues of the common mode, in which all driven neurons and the normalization
    pool take part, complex ``(..., 2)``; the only ones that may oscillate. NaN where no neuron is
    driven (rectified model)."""
    frequency: Tensor
    """Of that mode's oscillation, ``(...)``, in cycles per unit of time; 0 where it does not."""
    damping_ratio: Tensor
    """``(...)``: below 1 the mode oscillates, at 1 it is critically damped, above it decays."""


def normal_modes(circuit: Circuit) -> NormalModes:
    """Eigenvalues, frequency and damping of the circuits of Theorem 4.4.

    With ``W = alpha 1 1^T``, equal inhibitory drive ``c`` and equal time constants, all neurons
    have one ``a = c + alpha sum(|d|^m)``, and with ``s = a+`` the eigenvalues are ``-1 / tau_a``
    and ``-s / tau_y``, each ``n - 1`` times, and the roots of
    ``l^2 + l (s / tau_y + c / (tau_a a)) + s / (tau_y tau_a)``. Holds for any exponent; in the
    rectified model for the driven neurons, to which each silent one adds ``-1 / tau_y`` and
    ``-1 / tau_a``.

    Returns:
        Everything differentiable by the circuit's parameters.

    Raises:
        ValueError: The circuit is not of that form; the message names what is not equal.
    """
    y, a = circuit.closed_form()
    s = circuit.firing_rates(y, a)[2]
    if isinstance(circuit.exponent, Tensor):
        _equal("exponent", circuit.exponent, 1)
    tau_y, tau_a, c, _ = (
        _equal(name, tensor, entries)
        for name, tensor, entries in (
            ("tau_y", circuit.tau_y, 1),
            ("tau_a", circuit.tau_a, 1),
            ("inhibitory_drive", circuit.inhibitory_drive, 1),
            ("normalization_weight", circuit.normalization_weight, 2),
        )
    )
    driven = circuit.input_drive > 0 if circuit.rectified else torch.ones_like(y, dtype=torch.bool)
    driven = driven.expand_as(y)

    common_s, common_a = s[..., 0], a[..., 0]
    damping = common_s / tau_y + c / common_a / tau_a
    rate = (common_s / tau_y).sqrt() / tau_a.sqrt()
    ratio = damping / (2.0 * rate)
    pool, frequency = _roots(ratio, rate)

    of_y = torch.where(driven, -s / tau_y.unsqueeze(-1), -1.0 / tau_y.unsqueeze(-1))
    of_a = (-1.0 / tau_a.unsqueeze(-1)).expand_as(of_y)
    # The common mode takes the place of one driven neuron's pair.
    first = (driven & (driven.cumsum(-1) == 1)).unsqueeze(-1)
    pairs = torch.stack([of_y, of_a], -1)
    pairs = torch.where(first, pool.unsqueeze(-2), pairs.to(pool.dtype))

    silent = ~driven.any(-1)
    return NormalModes(
        pairs.flatten(-2),
        torch.where(silent.unsqueeze(-1), torch.nan, pool),
        torch.where(silent, torch.nan, frequency),
        torch.where(silent, torch.nan, ratio),
    )


def _roots(ratio: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Roots ``(..., 2)`` of ``l^2 + 2 ratio rate l + rate^2``, and the frequency in cycles."""
    oscillates = ratio < 1
    # Where a square root is not taken it must not spoil the derivative.
    real = torch.where(oscillates, 1.0, (ratio - 1.0) * (ratio + 1.0)).sqrt()
    imaginary = torch.where(oscillates, (1.0 - ratio) * (1.0 + ratio), 1.0).sqrt()
    zero = torch.zeros_like(ratio)
    first = torch.complex(
        torch.where(oscillates, -ratio * rate, -rate / (ratio + real)),
        torch.where(oscillates, imaginary * rate, zero),
    )
    fast = torch.complex(-(ratio + real) * rate, zero)
    second = torch.where(oscillates, first.conj(), fast)
    frequency = torch.where(oscillates, imaginary * rate / (2.0 * math.pi), zero)
    return torch.stack([first, second], -1), frequency


def _equal(name: str, tensor: Tensor, dims: int) -> Tensor:
    """The one value that the last dimensions repeat, with the others' shape."""
    flat = tensor.flatten(-dims)
    values = physical(flat)
    if not bool((values == values[..., :1]).all()):
        raise ValueError(
            f"{name}: got entries that differ, expected equal ones: Theorem 4.4 is about neurons "
            "that are all alike; use check_stability() for others"
        )
    return flat[..., 0]
