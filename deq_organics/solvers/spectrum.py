"""Eigenvalues of the Jacobian at a state, and the cheap verdict that seldom needs them."""

import torch
from torch import Tensor

from .. import equations
from .krylov import arnoldi_leading_eigenvalues
from .problem import Problem

__all__ = ["is_stable", "leading_eigenvalues"]

# A perturbation that shrinks to _DECAY of its length proves stability but for a chance of about
# sqrt(2n) * _DECAY that it started without the unstable direction.
_DECAY = 1e-6
# The same for what is left of it without its dominant pair of modes, which are known by then.
_PAIR_DECAY = 1e-5
_PAIR_RADIUS = 0.999
_GROWTH = 1e3
_PROBE_CYCLES = 12
_PATIENCE = 5
_SEED = 7919
_CIRCUITS_AT_A_TIME = 128
# Dimensions of the Krylov space for the eigenvalue itself (residual at rounding) and for no more
# than the sign of its real part (residual far below that).
_EXACT_DIMENSION, _EXACT_RESIDUAL = 40, 1e-11
_SIGN_DIMENSION, _SIGN_RESIDUAL = 10, 1e-2
# Roots of the polynomial in units of the fastest rate: -1.2 and -0.64 +- 0.6i. A pair whose
# real part is at least its imaginary part cannot shrink a mode with nonnegative real part.
_REAL_ROOT = 1.2
_PAIR_REAL, _PAIR_SQUARED = 0.64, 0.64**2 + 0.6**2


def leading_eigenvalues(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Each Jacobian's eigenvalue with the largest real part, complex128 ``(B,)``.

    Of a conjugate pair the one with the nonnegative imaginary part. Large Jacobians go to
    Arnoldi's method first; what does not converge there, and small ones, are solved densely.
    """
    problem, y, a = problem.to(torch.float64), y.double(), a.double()
    if y.shape[0] == 0:
        return y.new_zeros(0, dtype=torch.complex128)
    chunks = torch.arange(y.shape[0], device=y.device).split(_CIRCUITS_AT_A_TIME)

    def solve(index: Tensor) -> Tensor:
        return _leading(problem.select(index), y[index], a[index])

    leading = torch.cat([solve(index) for index in chunks])
    return torch.complex(leading.real, leading.imag.abs())


def _leading(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    if y.shape[-1] < _EXACT_DIMENSION:
        return _dense(problem, y, a)
    leading, residual = arnoldi_leading_eigenvalues(problem, y, a, _EXACT_DIMENSION)
    rest = (~(residual <= _EXACT_RESIDUAL * leading.abs())).nonzero().squeeze(-1)
    if rest.numel():
        leading[rest] = _dense(problem.select(rest), y[rest], a[rest])
    return leading


def _dense(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    spectrum = torch.linalg.eigvals(problem.jacobian(y, a))
    return spectrum.gather(-1, spectrum.real.argmax(-1, keepdim=True)).squeeze(-1)


def is_stable(problem: Problem, y: Tensor, a: Tensor, candidates: Tensor) -> Tensor:
    """Which of the ``candidates`` (a mask ``(B,)``) are linearly stable at ``(y, a)``.

    A polynomial of the Jacobian that can shrink stable modes only acts again and again on a random
    perturbation. Where that dies out the circuit is stable; where it does not within a bounded
    number of steps, the leading eigenvalue decides.
    """
    verdict = torch.zeros_like(candidates)
    index = candidates.nonzero().squeeze(-1)
    if index.numel() == 0:
        return verdict
    everyone = index.numel() == problem.batch_size
    part = problem if everyone else problem.select(index)
    stable, undecided, perturbation = _probe(part, *((y, a) if everyone else (y[index], a[index])))
    rows = undecided.nonzero().squeeze(-1)
    if rows.numel():
        where = index[rows]
        stable[rows] = _is_negative(part.select(rows), y[where], a[where], perturbation[rows])
    verdict[index] = stable
    return verdict


def _is_negative(problem: Problem, y: Tensor, a: Tensor, start: Tensor) -> Tensor:
    """Whether the leading eigenvalue's real part is negative, ``(B,)``."""
    if y.shape[-1] < _EXACT_DIMENSION:
        return leading_eigenvalues(problem, y, a).real < 0
    leading, residual = arnoldi_leading_eigenvalues(problem, y, a, _SIGN_DIMENSION, start)
    negative = leading.real < 0
    doubtful = (~(residual <= _SIGN_RESIDUAL * leading.real.abs())).nonzero().squeeze(-1)
    if doubtful.numel():
        part = problem.select(doubtful)
        negative[doubtful] = leading_eigenvalues(part, y[doubtful], a[doubtful]).real < 0
    return negative


def _probe(problem: Problem, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks ``(B,)``, proved stable by decay and undecided, and the perturbation ``(B, 2n)``."""
    lin = equations.linearize(y, a, problem.recurrent_weight, problem.exponent, problem.rectified)
    fastest = torch.maximum(
        (lin.gain.abs().clamp_min(1.0) / problem.tau_y).amax(-1), (1.0 / problem.tau_a).amax(-1)
    ).unsqueeze(-1)
    scale_y, scale_a = 1.0 / (fastest * problem.tau_y), 1.0 / (fastest * problem.tau_a)

    def flow(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        inner = p if lin.slope is None else lin.slope * p
        recurrent = equations.matvec(problem.recurrent_weight, inner)
        pool = equations.matvec(problem.normalization_weight, lin.excitation * p + lin.pool * q)
        return (
            scale_y * torch.addcmul(lin.gain * recurrent - p, lin.inhibition, q, value=-1.0),
            scale_a * (pool - q),
        )

    def cycle(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        flow_p, flow_q = flow(p, q)
        p, q = p + flow_p / _REAL_ROOT, q + flow_q / _REAL_ROOT
        flow_p, flow_q = flow(p, q)
        second_p, second_q = flow(flow_p, flow_q)
        return (
            p + (2.0 * _PAIR_REAL * flow_p + second_p) / _PAIR_SQUARED,
            q + (2.0 * _PAIR_REAL * flow_q + second_q) / _PAIR_SQUARED,
        )

    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(2, 1, y.shape[-1], generator=generator, dtype=torch.float64).to(y)
    p, q = start[0].expand_as(y), start[1].expand_as(y)
    first = start.norm()
    stable = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
    going = ~stable
    history = [torch.cat([p, q], -1)]
    for number in range(1, _PROBE_CYCLES + 1):
        p, q = cycle(p, q)
        history = [*history[-2:], torch.cat([p, q], -1)]
        length = history[-1].norm(dim=-1) / first
        stable |= going & (length <= _DECAY)
        if len(history) == 3:
            radius, rest = _dominant_pair(*history)
            stable |= going & (radius < _PAIR_RADIUS) & (rest <= _PAIR_DECAY * first)
        if number >= _PATIENCE:
            # Too slow to get there within the cycles that are left: the eigenvalue is cheaper.
            going = going & (length <= _DECAY ** (number / _PROBE_CYCLES))
        going = going & ~stable & (length < _GROWTH)
        if not going.any():
            break
    return stable, ~stable, history[-1]


def _dominant_pair(x0: Tensor, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """The modes that dominate three successive iterates ``(B, 2n)``: modulus, and what is left.

    Fits ``x2 = alpha x1 + beta x0``. The roots of ``z^2 - alpha z - beta`` are the factors by which
    the dominant pair of modes grows; the rest of the fit is free of that pair.
    """
    aa, ab, bb = (x1 * x1).sum(-1), (x1 * x0).sum(-1), (x0 * x0).sum(-1)
    ca, cb = (x2 * x1).sum(-1), (x2 * x0).sum(-1)
    determinant = aa * bb - ab * ab
    alpha = (ca * bb - cb * ab) / determinant
    beta = (cb * aa - ca * ab) / determinant
    rest = (x2 - alpha.unsqueeze(-1) * x1 - beta.unsqueeze(-1) * x0).norm(dim=-1)
    discriminant = alpha.square() + 4.0 * beta
    real = 0.5 * (alpha.abs() + discriminant.clamp_min(0.0).sqrt())
    radius = torch.where(discriminant < 0, beta.abs().sqrt(), real)
    return radius, rest
