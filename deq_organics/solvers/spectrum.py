"""Eigenvalues of the Jacobian at a state, and the cheap verdict that seldom needs them."""

import torch
from torch import Tensor

from .. import equations
from .krylov import arnoldi_leading_eigenvalues, shifted_leading_eigenvalues
from .problem import Problem

__all__ = ["SMALLEST_FILTERED", "is_stable", "leading_eigenvalues", "perturbation"]

# Smaller Jacobians are cheaper to decompose than to filter.
SMALLEST_FILTERED = 8
# The Chebyshev interval, in units of the fastest rate, and after how many products to judge.
_CENTRE, _HALF_WIDTH = -0.9, 0.6
_FILTER_DEGREES = (20, 32)
# Modes below this part of the first perturbation do not count; see `is_stable`.
_NEGLIGIBLE = 1e-3
_DIMENSION = 4
# Residual of a Ritz value, relative to its real part, that tells the sign of that part.
_SIGN_RESIDUAL = 1e-2
_SMALLEST_PIVOT = 1e-10
_SEED = 7919
_CIRCUITS_AT_A_TIME = 128
# Krylov spaces of the Jacobian and of its shifted inverse, and the residual of an exact eigenvalue.
_SMALLEST_SPARSE = 40
_DIRECT_DIMENSION, _SHIFTED_DIMENSION, _EXACT_RESIDUAL = 40, 32, 1e-11


def leading_eigenvalues(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Each Jacobian's eigenvalue with the largest real part, complex128 ``(B,)``.

    Of a conjugate pair the one with the nonnegative imaginary part. Large Jacobians go to
    Arnoldi's method, first directly, then shifted to the edge of the spectrum; what converges in
    neither, and small ones, are solved densely.
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
    if y.shape[-1] < _SMALLEST_SPARSE:
        return _dense(problem, y, a)
    leading, residual = arnoldi_leading_eigenvalues(problem, y, a, _DIRECT_DIMENSION)
    rest = (~(residual <= _EXACT_RESIDUAL * leading.abs())).nonzero().squeeze(-1)
    if rest.numel():
        part, y, a = problem.select(rest), y[rest], a[rest]
        edge, doubt = leading[rest].real, residual[rest]
        near, found = shifted_leading_eigenvalues(
            part, y, a, edge, _SHIFTED_DIMENSION, _EXACT_RESIDUAL
        )
        # An eigenvalue of larger real part that is far from the edge would show in `edge`.
        good = found & (near.real >= edge - doubt)
        leading[rest[good]] = near[good]
        left = (~good).nonzero().squeeze(-1)
        if left.numel():
            leading[rest[left]] = _dense(part.select(left), y[left], a[left])
    return leading


def _dense(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    spectrum = torch.linalg.eigvals(problem.jacobian(y, a))
    return spectrum.gather(-1, spectrum.real.argmax(-1, keepdim=True)).squeeze(-1)


def is_stable(problem: Problem, y: Tensor, a: Tensor, candidates: Tensor) -> Tensor:
    """Which of the ``candidates`` (a mask ``(B,)``) are linearly stable at ``(y, a)``.

    Chebyshev polynomials of the Jacobian, for an interval of the negative real axis and with value
    1 at 0, act on a random perturbation. They shrink no mode outside the ellipse through 0 around
    that interval, hence none with a nonnegative real part: what is left of the perturbation holds
    every unstable mode. Where nothing much is left the circuit is stable; where four modes make up
    nearly all of it, the largest real part of their eigenvalues decides. What that leaves open goes
    to :func:`leading_eigenvalues`.

    The perturbation may have started with too little of an unstable mode to be noticed: for a mode
    that is not among the four the chance is of the order of ``sqrt(2n) * 1e-3``.
    """
    verdict = torch.zeros_like(candidates)
    index = candidates.nonzero().squeeze(-1)
    if index.numel() == 0:
        return verdict
    if index.numel() < problem.batch_size:
        problem, y, a = problem.select(index), y[index], a[index]
    if y.shape[-1] < SMALLEST_FILTERED:
        verdict[index] = leading_eigenvalues(problem, y, a).real < 0
        return verdict
    stable = _filtered_out(problem, y, a)
    rows = (~stable).nonzero().squeeze(-1)
    if rows.numel():
        leading = leading_eigenvalues(problem.select(rows), y[rows], a[rows])
        stable[rows] = leading.real < 0
    verdict[index] = stable
    return verdict


def perturbation(n: int) -> Tensor:
    """A random direction of ``(y, a)``, ``(2n,)``, always the same one."""
    generator = torch.Generator().manual_seed(_SEED)
    direction = torch.randn(2 * n, generator=generator, dtype=torch.float64)
    return direction / direction.norm()


def _filtered_out(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Which circuits ``(B,)`` the filter shows to be stable."""
    lin = equations.linearize(y, a, problem.recurrent_weight, problem.exponent, problem.rectified)
    rate_y, rate_a = 1.0 / problem.tau_y, 1.0 / problem.tau_a
    fastest = torch.maximum(
        (lin.gain.abs().clamp_min(1.0) * rate_y).amax(-1), rate_a.amax(-1)
    ).unsqueeze(-1)
    rate_y, rate_a = rate_y / fastest, rate_a / fastest
    # The factors of (J / fastest - centre), applied to a perturbation (p, q).
    recurrence, inhibition, pooling = rate_y * lin.gain, rate_y * lin.inhibition, rate_a
    leak_y, leak_a = rate_y + _CENTRE, rate_a + _CENTRE

    def advance(now: Tensor, before: Tensor, forward: float, back: float) -> Tensor:
        """``forward (J / fastest - centre) now - back before``."""
        p, q = now.chunk(2, -1)
        inner = p if lin.slope is None else lin.slope * p
        recurrent = equations.matvec(problem.recurrent_weight, inner)
        pool = equations.matvec(
            problem.normalization_weight, torch.addcmul(lin.excitation * p, lin.pool, q)
        )
        following = before * -back
        next_p, next_q = following.chunk(2, -1)
        next_p.addcmul_(recurrence, recurrent, value=forward)
        next_p.addcmul_(inhibition, q, value=-forward).addcmul_(leak_y, p, value=-forward)
        next_q.addcmul_(pooling, pool, value=forward).addcmul_(leak_a, q, value=-forward)
        return following

    start = perturbation(y.shape[-1]).to(y).expand(y.shape[0], -1)
    # The recurrence of Chebyshev's polynomials, divided by their values at 0: these grow by the
    # factor 1 / ratio.
    ratio = -_HALF_WIDTH / _CENTRE
    ratios = [1.0, ratio]
    iterates = [start, advance(start, start, ratio / _HALF_WIDTH, 0.0)]
    stable = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
    for degree in range(2, _FILTER_DEGREES[-1] + 1):
        ratios.append(1.0 / (2.0 / ratio - ratios[-1]))
        forward, back = 2.0 * ratios[-1] / _HALF_WIDTH, ratios[-1] * ratios[-2]
        following = advance(iterates[-1], iterates[-2], forward, back)
        iterates = [*iterates[-_DIMENSION - 1 :], following]
        if degree in _FILTER_DEGREES:
            stable |= _holds_no_unstable_mode(iterates, ratios[-_DIMENSION - 1 :])
            if stable.all():
                break
    return stable


def _holds_no_unstable_mode(iterates: list[Tensor], ratios: list[float]) -> Tensor:
    """Whether the last of the filter's iterates ``(B, 2n)`` is small or made of stable modes.

    The modes are those of Rayleigh-Ritz in the span of all but the first and the last iterate. The
    filter's recurrence gives their images, so that products of the iterates are all it takes.
    """
    stack = torch.stack(iterates, 1).double()
    gram = stack @ stack.mT
    small = gram[:, -1, -1] <= _NEGLIGIBLE**2
    if small.all():
        return small
    # Column j of `image` holds A x_j = (x_{j+1} + r_j r_{j+1} x_{j-1}) / (2 r_{j+1}), where
    # A = (J / fastest - centre) / half width.
    image = gram.new_zeros(_DIMENSION + 2, _DIMENSION)
    for j in range(_DIMENSION):
        image[j, j] = ratios[j] / 2.0
        image[j + 2, j] = 0.5 / ratios[j + 1]
    factor, info = torch.linalg.cholesky_ex(gram[:, 1:-1, 1:-1])
    whitened = torch.linalg.solve_triangular(factor, gram[:, 1:-1], upper=False)
    remainder = gram[:, -1, -1] - whitened[..., -1].square().sum(-1)
    projected = torch.linalg.solve_triangular(factor, (whitened @ image).mT, upper=False).mT
    # Iterates that are close to dependent hold too few digits of their differences.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    independent = pivots > _SMALLEST_PIVOT * gram.diagonal(dim1=-2, dim2=-1)[:, 1:-1]
    usable = (info == 0) & independent.all(-1) & torch.isfinite(projected).all((-2, -1))
    projected = torch.where(usable[:, None, None], projected, 0.0)
    ritz, vectors = torch.linalg.eig(projected)
    chosen = ritz.real.argmax(-1, keepdim=True)
    value = ritz.gather(-1, chosen).squeeze(-1)
    vector = vectors.gather(-1, chosen.unsqueeze(1).expand(-1, _DIMENSION, 1)).squeeze(-1)
    # |A x - value x|^2 for the Ritz vector x, from the coefficients of A x and x in the iterates.
    coefficients = torch.linalg.solve_triangular(
        factor.mT.to(vector.dtype), vector.unsqueeze(-1), upper=True
    )
    error = image.to(vector.dtype) @ coefficients
    error[:, 1:-1] -= value[:, None, None] * coefficients
    squared = (error.mH @ gram.to(vector.dtype) @ error).real.reshape(-1).clamp_min(0.0)
    real_part = _CENTRE / _HALF_WIDTH + value.real
    stable = squared.sqrt() <= -_SIGN_RESIDUAL * real_part
    return small | (usable & stable & (remainder <= _NEGLIGIBLE**2))
