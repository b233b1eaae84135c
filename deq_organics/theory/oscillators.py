"""Circuits with ``Wr = I`` as coupled damped oscillators: Eqs. 8-11 and Theorems 4.1-4.4.

Near its steady state such a circuit has the eigenvalues of ``x'' + B x' + K x = 0``: ``K`` is
diagonal and positive, and ``B`` is a Z-matrix, which is why the circuit is stable whatever its
parameters, inputs and time constants. All of it holds for any exponent ``m``, and for the rectified
model, in which a silent neuron (``d <= 0``) is an oscillator that no other one feels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..circuit import Circuit

__all__ = [
    "Certificate",
    "Oscillators",
    "coupled_oscillators",
    "m_matrix_certificate",
    "oscillator_eigenvalues",
]


class Oscillators(NamedTuple):
    """The coefficients of ``x'' + B x' + K x = 0``."""

    damping: Tensor
    """``B`` of Eq. 11, ``(..., n, n)``, in 1/time: diagonal where neurons do not normalize others,
    nonpositive off the diagonal."""
    stiffness: Tensor
    """Diagonal of ``K`` of Eq. 10, ``(..., n)``, positive, in 1/time^2."""


class Certificate(NamedTuple):
    """Theorem 4.3's proof of stability for one circuit or a batch, without eigenvalues."""

    certified: Tensor
    """Boolean ``(...)``: the damping matrix is a nonsingular M-matrix, so the circuit is stable."""
    lyapunov_diagonal: Tensor
    """Positive ``t`` of shape ``(..., n)`` with ``T B + B^T T`` positive definite, ``T = D(t)``."""


def coupled_oscillators(circuit: Circuit) -> Oscillators:
    """Damping and stiffness matrix at the steady state of circuits with ``Wr = I`` (Eqs. 8-11).

    ``B = D(g / tau_y + 1 / tau_a) - D(1 / tau_a) W D(y+ + y-)`` and ``K = D(g / (tau_y tau_a))``,
    where ``g = a+``, or 1 for the silent neurons of the rectified model.

    Raises:
        ValueError: The circuit has recurrent weights other than None.
    """
    y, a = circuit.closed_form()
    weight, m, tau_a = circuit.normalization_weight, circuit.exponent, circuit.tau_a
    decay = circuit.firing_rates(y, a)[2]
    if circuit.rectified:
        decay = torch.where(y > 0, decay, 1.0)
    # 1 / tau_a minus the diagonal of W D(y+ + y-) / tau_a, without a difference that rounds to 0.
    drive = equations.power(equations.drive(circuit.input_drive, circuit.rectified), m)
    others = weight - torch.diag_embed(weight.diagonal(dim1=-2, dim2=-1))
    with equations.full_precision(weight):
        remainder = (circuit.inhibitory_drive + equations.matvec(others, drive)) / a
    pool = equations.power(equations.drive(y, circuit.rectified), m)
    coupling = others * pool.unsqueeze(-2) / tau_a.unsqueeze(-1)
    return Oscillators(
        torch.diag_embed(decay / circuit.tau_y + remainder / tau_a) - coupling,
        decay / (circuit.tau_y * tau_a),
    )


def oscillator_eigenvalues(oscillators: Oscillators) -> Tensor:
    """All ``2n`` roots of ``det(l^2 I + l B + K) = 0`` (Eq. 8), complex ``(..., 2n)``, in 1/time.

    They are the eigenvalues of the circuit's Jacobian, computed from the companion form.
    """
    damping, stiffness = oscillators
    # With velocities in units of the frequencies the companion matrix is well scaled.
    frequency = stiffness.sqrt()
    upper = torch.cat([torch.zeros_like(damping), torch.diag_embed(frequency)], -1)
    lower = torch.cat([torch.diag_embed(-frequency), -damping], -1)
    return torch.linalg.eigvals(torch.cat([upper, lower], -2))


@torch.no_grad()
def m_matrix_certificate(circuit: Circuit) -> Certificate:
    """Prove the stability of circuits with ``Wr = I`` at their steady state (Thms 4.1-4.3).

    The damping matrix ``B`` of Eq. 11 is a Z-matrix; ``x = B^-1 1 > 0`` shows that it is a
    nonsingular M-matrix, hence Lyapunov diagonally stable, with ``T = D((B^-T 1) / (B^-1 1))``.
    That it always is one follows from ``B a = D(g / tau_y) a + c / tau_a > 0``. The result has no
    gradient.

    Raises:
        ValueError: The circuit has recurrent weights other than None.
    """
    damping = coupled_oscillators(circuit.to(torch.float64)).damping
    ones = damping.new_ones(damping.shape[:-1])
    right, info = torch.linalg.solve_ex(damping, ones)
    left, _ = torch.linalg.solve_ex(damping.mT, ones)
    with equations.full_precision(damping):
        image = equations.matvec(damping, right)
    certified = (info == 0) & ((right > 0) & (left > 0) & (image > 0)).all(-1)
    return Certificate(certified, left / right)
