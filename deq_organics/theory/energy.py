"""Theorem 4.5: the energy that circuits with ``Wr = I`` minimize near their steady state."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..checks import check_finite
from ..circuit import Circuit
from .oscillators import m_matrix_certificate

__all__ = ["energy", "energy_form"]


class _Terms(NamedTuple):
    """What the energy is made of at the steady state, each ``(..., n)``."""

    weight: Tensor
    """``t``; 0 where a neuron does not count."""
    drive: Tensor
    """The input drive; 1 where a neuron does not count."""
    y: Tensor
    a: Tensor
    s: Tensor
    balance: Tensor
    """``(tau_y / tau_a) s``: how much the response counts against the reconstructed input."""


def energy(circuit: Circuit, y: Tensor, a: Tensor) -> Tensor:
    """Energy of states ``(..., n)`` of circuits with ``Wr = I``, ``(...)`` (Eq. 13; 2D: Eq. 14).

    ``V = sum_i t_i (a_i* / d_i)^2 [ (tau_y / tau_a) s_i* (y_i - y_i*)^2 + (s_i y_i - d_i)^2 ]``
    with the steady state ``y*``, ``a*``, with ``s = a+`` and with ``t`` the diagonal of the
    certificate (Theorem 4.2). It does not grow along the linearized flow. The second term asks
    that the input drive be reconstructed, the first that the response be normalized. Neurons
    without a drive (in the rectified model those with ``d <= 0``) influence no other neuron and do
    not count. For an exponent other than 2 the same holds with ``s = a^(1/m)``.

    The unit is arbitrary: a constant factor is free.

    Raises:
        ValueError: The circuit has recurrent weights other than None, or the state does not fit.
    """
    for name, tensor in (("y", y), ("a", a)):
        check_finite(name, tensor)
    s = circuit.firing_rates(y, a)[2]
    terms = _terms(circuit)
    # In units of the drive before it is squared: the squares of small ones would be zero.
    reconstruction = (s * equations.drive(y, circuit.rectified) - circuit.input_drive) / terms.drive
    response = (y - terms.y) / terms.drive
    bracket = terms.balance * response.square() + reconstruction.square()
    return (terms.weight * terms.a.square() * bracket).sum(-1)


def energy_form(circuit: Circuit) -> Tensor:
    """The energy's quadratic form ``P`` at the steady state, ``(..., 2n, 2n)``, order ``(y, a)``.

    A small deviation ``x`` from the steady state has energy ``x^T P x``, positive semidefinite,
    and ``P J + J^T P`` is negative semidefinite with the Jacobian ``J``.

    Raises:
        ValueError: The circuit has recurrent weights other than None.
    """
    terms, m = _terms(circuit), circuit.exponent
    ratio = terms.a / terms.drive
    yy = torch.diag_embed(terms.weight * (terms.balance + terms.s.square()) * ratio * ratio)
    ya = torch.diag_embed(terms.weight * terms.s * ratio / m)
    aa = torch.diag_embed(terms.weight / (m * m))
    return torch.cat([torch.cat([yy, ya], -1), torch.cat([ya, aa], -1)], -2)


def _terms(circuit: Circuit) -> _Terms:
    y, a = circuit.closed_form()
    s = circuit.firing_rates(y, a)[2]
    d = circuit.input_drive.expand_as(y)
    driven = d > 0 if circuit.rectified else d != 0
    t = m_matrix_certificate(circuit).lyapunov_diagonal.to(y)
    weight, drive = torch.where(driven, t, 0.0), torch.where(driven, d, 1.0)
    m = circuit.exponent
    if isinstance(m, Tensor):
        # A factor that all neurons share where their exponents are equal, and then 1.
        weight = weight * (m / m.amax(-1, keepdim=True)).square()
    return _Terms(weight, drive, y, a, s, s * (circuit.tau_y / circuit.tau_a))
