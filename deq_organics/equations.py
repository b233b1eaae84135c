"""The circuit's equations, each in one place, as pure functions of tensors.

Notation of the paper (Rawat, Heeger, Martiniani, NeurIPS 2024): membrane potentials ``y``
(excitatory, principal) and ``a`` (inhibitory), both of shape ``(..., n)`` and dimensionless;
input drive ``d = b z``; inhibitory drive ``c = (b0 sigma)^m``; recurrent weights ``Wr`` and
normalization weights ``W`` of shape ``(..., n, n)``; power-law exponent ``m`` (2 in the paper);
time constants in any one unit of time. ``Wr = None`` stands for the identity.
An exponent is a number, or a tensor that broadcasts with the potentials: one per neuron.

Every function broadcasts over leading dimensions and differentiates with autograd.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .norms import size_of

__all__ = [
    "Linearization",
    "complementary_firing_rate",
    "drive",
    "firing_rate",
    "full_precision",
    "identity_steady_state",
    "inhibitory_firing_rate",
    "input_gain_residual",
    "jacobian",
    "linearize",
    "matvec",
    "normalization_pool",
    "pooled_power",
    "power",
    "recurrent_drive",
    "residual",
    "root",
]


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which autocast takes no product of the equations below float32."""
    return torch.autocast(like.device.type, enabled=False)


def matvec(matrix: Tensor | None, vector: Tensor) -> Tensor:
    """``matrix @ vector`` for a matrix shared by the batch or one per circuit; None is I."""
    if matrix is None:
        return vector
    if matrix.ndim == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def power(x: Tensor, exponent: float | Tensor) -> Tensor:
    """``|x|^exponent``, elementwise.

    Where ``x = 0`` and the exponent is not even, all derivatives are 0. So is each that exists
    there. Those of a higher order than the exponent are infinite there, for instance the second one
    for exponents between 1 and 2, and left out: the rectified ``x`` of a silent neuron has none.
    """
    if not isinstance(exponent, Tensor):
        if exponent == 2.0:
            return x * x
        if exponent % 2.0 == 0.0:
            return x.pow(exponent)
    zero = x == 0
    # The stand-in keeps infinite derivatives, times 0, out of the others.
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).abs().pow(exponent))


def firing_rate(y: Tensor, exponent: float | Tensor = 2.0) -> Tensor:
    """Principal neurons' firing rates ``y+ = relu(y)^m``."""
    return power(torch.relu(y), exponent)


def complementary_firing_rate(y: Tensor, exponent: float | Tensor = 2.0) -> Tensor:
    """Firing rates ``y- = relu(-y)^m`` of the neurons with complementary receptive fields."""
    return power(torch.relu(-y), exponent)


def root(x: Tensor, exponent: float | Tensor) -> Tensor:
    """``x^(1 / exponent)``, elementwise, for positive ``x``."""
    if not isinstance(exponent, Tensor) and exponent == 2.0:
        return x.sqrt()
    return x.pow(1.0 / exponent)


def inhibitory_firing_rate(a: Tensor, exponent: float | Tensor = 2.0) -> Tensor:
    """Inhibitory firing rates ``a+ = relu(a)^(1/m)``, with derivative 0 where ``a <= 0``."""
    positive = a > 0
    return torch.where(positive, root(torch.where(positive, a, 1.0), exponent), 0.0)


def drive(y: Tensor, rectified: bool) -> Tensor:
    """What the recurrent weights act on: ``y`` (Eq. 1) or ``relu(y)`` (Eq. 87)."""
    return torch.relu(y) if rectified else y


def recurrent_drive(
    y: Tensor, recurrent_weight: Tensor | None, rectified: bool, after_weights: bool = False
) -> Tensor:
    """``Wr y`` (Eq. 1) or ``Wr relu(y)`` (Eq. 87); ``relu(Wr y)`` with ``after_weights``.

    The last is what the published RNN code computes where Eq. 87 has ``Wr relu(y)``.
    """
    if rectified and after_weights:
        return torch.relu(matvec(recurrent_weight, y))
    return matvec(recurrent_weight, drive(y, rectified))


def normalization_pool(y: Tensor, a: Tensor, exponent: float | Tensor, rectified: bool) -> Tensor:
    """``(y+ + y-) (a+)^m`` of Eq. 1, or ``y+ (a+)^m`` of Eq. 87: what ``W`` acts on."""
    return power(drive(y, rectified), exponent) * torch.relu(a)


def pooled_power(normalization_weight: Tensor, x: Tensor, exponent: float | Tensor) -> Tensor:
    """``W |x|^m``, also where ``|x|^m`` alone leaves the range of its dtype.

    Inputs of 1e-22 and weights of 1e30 make a pool of 1e-14, but the square of 1e-22 is zero in
    float32.
    """
    if isinstance(exponent, Tensor):
        # The sizes of the terms differ by neuron: their square roots have one size for all.
        x, exponent = power(x, 0.5 * exponent), 2.0
    size = size_of(x)
    if exponent == 2.0:
        return matvec(normalization_weight, x * (x / size)) * size
    half = size.pow(0.5 * exponent)
    return matvec(normalization_weight, half * power(x / size, exponent)) * half


def residual(
    y: Tensor,
    a: Tensor,
    input_drive: Tensor,
    inhibitory_drive: Tensor,
    recurrent_weight: Tensor | None,
    normalization_weight: Tensor,
    exponent: float | Tensor = 2.0,
    rectified: bool = False,
    after_weights: bool = False,
) -> tuple[Tensor, Tensor]:
    """Right-hand sides of Eq. 1/15 (main) or Eq. 87 (rectified), before division by tau.

    Returns ``(tau_y dy/dt, tau_a da/dt)``; both vanish at a fixed point. ``after_weights`` is
    that of :func:`recurrent_drive`.
    """
    recurrent = recurrent_drive(y, recurrent_weight, rectified, after_weights)
    gain = 1.0 - inhibitory_firing_rate(a, exponent)
    pool = matvec(normalization_weight, normalization_pool(y, a, exponent, rectified))
    return input_drive - y + gain * recurrent, inhibitory_drive - a + pool


def input_gain_residual(
    gain: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    weight_x: Tensor,
    weight_y: Tensor,
    weight_a: Tensor,
) -> Tensor:
    """Right-hand side of Eq. 17, ``-b + sigmoid(Wbx x + Wby y + Wba a)``, before division by tau.

    For ``gain`` ``(..., n)`` (``b``, or ``b0`` with its own weights) and input ``(..., k)``.
    """
    activation = matvec(weight_x, x) + matvec(weight_y, y) + matvec(weight_a, a)
    return activation.sigmoid() - gain


class Linearization(NamedTuple):
    """The factors of the Jacobian at a state, each ``(..., n)``; ``s = a+``, ``u = Wr drive(y)``.

    For ``tau = 1`` a perturbation ``(p, q)`` of ``(y, a)`` obeys
    ``dp/dt = -p + gain * Wr (slope * p) - inhibition * q`` and
    ``da/dt = -q + W (excitation * p + pool * q)``.
    """

    gain: Tensor
    """``1 - s``: the gain of the recurrent drive."""
    slope: Tensor | None
    """Derivative of the rectifier (0 or 1); None in the main model, where it is 1."""
    inhibition: Tensor
    """``u ds/da = u s / (m a)``: effect of an inhibitory neuron on its principal neuron."""
    excitation: Tensor
    """Derivative of the normalization pool by ``y``: ``m |y|^(m-1) sign(y) a``."""
    pool: Tensor
    """Derivative of the normalization pool by ``a``: ``y+ + y-``."""


def linearize(
    y: Tensor,
    a: Tensor,
    recurrent_weight: Tensor | None,
    exponent: float | Tensor = 2.0,
    rectified: bool = False,
) -> Linearization:
    """Factors of the Jacobian at any state ``(y, a)``."""
    active = drive(y, rectified)
    s = inhibitory_firing_rate(a, exponent)
    positive = a > 0
    slope_a = torch.where(positive, s / (exponent * torch.where(positive, a, 1.0)), 0.0)
    if not isinstance(exponent, Tensor) and exponent == 2.0:
        excitation = 2.0 * active * torch.relu(a)
    elif not isinstance(exponent, Tensor) and exponent % 2.0 == 0.0:
        excitation = exponent * active.pow(exponent - 1.0) * torch.relu(a)
    else:
        excitation = exponent * power(active, exponent - 1.0) * active.sign() * torch.relu(a)
    return Linearization(
        gain=1.0 - s,
        slope=(y > 0).to(y.dtype) if rectified else None,
        inhibition=matvec(recurrent_weight, active) * slope_a,
        excitation=excitation,
        pool=torch.where(positive, power(active, exponent), 0.0),
    )


def jacobian(
    y: Tensor,
    a: Tensor,
    recurrent_weight: Tensor | None,
    normalization_weight: Tensor,
    tau_y: Tensor | float = 1.0,
    tau_a: Tensor | float = 1.0,
    exponent: float | Tensor = 2.0,
    rectified: bool = False,
) -> Tensor:
    """Analytic Jacobian of the vector field, ``(..., 2n, 2n)`` in the order ``(y, a)`` (Eq. 6)."""
    lin = linearize(y, a, recurrent_weight, exponent, rectified)
    n = y.shape[-1]
    identity = torch.eye(n, dtype=y.dtype, device=y.device)
    recurrent = identity if recurrent_weight is None else recurrent_weight
    if lin.slope is not None:
        recurrent = recurrent * lin.slope.unsqueeze(-2)
    # Not gain * Wr - I, in which the digits of a small rate are lost where Wr is close to I.
    rate = inhibitory_firing_rate(a, exponent)
    yy = (recurrent - identity) - rate.unsqueeze(-1) * recurrent
    ya = -lin.inhibition.unsqueeze(-1) * identity
    ay = normalization_weight * lin.excitation.unsqueeze(-2)
    aa = normalization_weight * lin.pool.unsqueeze(-2) - identity
    yy, ya, ay, aa = torch.broadcast_tensors(yy, ya, ay, aa)
    rows_y = torch.cat([yy, ya], -1) / _column(tau_y)
    rows_a = torch.cat([ay, aa], -1) / _column(tau_a)
    return torch.cat(torch.broadcast_tensors(rows_y, rows_a), -2)


def _column(tau: Tensor | float) -> Tensor | float:
    return tau.unsqueeze(-1) if isinstance(tau, Tensor) and tau.ndim else tau


def identity_steady_state(
    input_drive: Tensor,
    inhibitory_drive: Tensor,
    normalization_weight: Tensor,
    exponent: float | Tensor = 2.0,
    rectified: bool = False,
) -> tuple[Tensor, Tensor]:
    """The unique fixed point for ``Wr = I``: Eq. 4 (main model) or Eq. 89 (rectified model).

    Where ``a`` is beyond the range of the dtype it is infinite, and ``y`` is NaN.
    """
    active = drive(input_drive, rectified)
    a = inhibitory_drive + pooled_power(normalization_weight, active, exponent)
    y = torch.where(torch.isinf(a), torch.nan, active / root(a, exponent))
    if rectified:
        y = y - torch.relu(-input_drive)
    return y, a
