"""Verdicts on stability, each of them proved, and the leading eigenvalues of the Jacobians."""

import torch
from torch import Tensor

from .. import equations
from ..problem import Problem
from .balanced import Balanced, balance, chunks, linearize, scales
from .cayley import Verdict, resolvent, spectral_radius
from .discs import side_of_zero
from .dissipation import dissipates
from .leading import SMALLEST, first_guess, rightmost_eigenvalues

__all__ = ["is_stable", "leading_eigenvalues", "verdicts"]

# Powers of smaller Jacobians take less time than a look for a quicker proof.
_SMALLEST_DISSIPATING = 12
_CIRCUITS_AT_A_TIME = 1024


def is_stable(problem: Problem, y: Tensor, a: Tensor, candidates: Tensor) -> Tensor:
    """Which of the ``candidates`` (a mask ``(B,)``) are proved linearly stable at ``(y, a)``."""
    stable = torch.zeros_like(candidates)
    index = candidates.nonzero().squeeze(-1)
    if index.numel():
        if index.numel() < problem.batch_size:
            problem, y, a = problem.select(index), y[index], a[index]
        stable[index] = verdicts(problem, y, a) == Verdict.INSIDE
    return stable


def verdicts(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Whether all eigenvalues of the Jacobians at ``(y, a)`` lie in the left half plane.

    :class:`Verdict` ``(B,)``. What is not ``UNDECIDED`` is proved, up to the rounding of the
    Jacobian's entries, by the first of these that applies:

    - For ``Wr = I`` Theorem 4.3 says so.
    - Most circuits dissipate in balanced coordinates, but for one mode: :mod:`.dissipation`.
    - Powers of the Cayley transform vanish or grow: :mod:`.cayley`.
    - Discs around computed eigenvalues hold the exact ones: :mod:`.discs`.
    """
    n = y.shape[-1]
    verdict = torch.full((y.shape[0],), int(Verdict.UNDECIDED), device=y.device)
    verdict[_has_identity(problem)] = int(Verdict.INSIDE)
    left = (verdict == Verdict.UNDECIDED).nonzero().squeeze(-1)
    with equations.full_precision(y):
        if left.numel() and n >= _SMALLEST_DISSIPATING:
            proved = dissipates(problem.select(left), y[left], a[left])
            verdict[left[proved]] = int(Verdict.INSIDE)
            left = left[~proved]
        for index in chunks(left, n):
            jacobian = _balanced(problem.select(index), y[index], a[index])
            verdict[index] = _by_powers_or_discs(_in_units(jacobian)[0])
    return verdict


def _has_identity(problem: Problem) -> Tensor:
    """Which circuits ``(B,)`` have ``Wr = I``, also where that is given as a matrix."""
    wr, size = problem.recurrent_weight, problem.batch_size
    if wr is None:
        return torch.ones(size, dtype=torch.bool, device=problem.input_drive.device)
    identity = torch.eye(wr.shape[-1], dtype=wr.dtype, device=wr.device)
    return (wr == identity).all(-1).all(-1).expand(size)


def _balanced(problem: Problem, y: Tensor, a: Tensor) -> Balanced:
    """The Jacobians in float64 and in balanced coordinates."""
    problem = problem.to(torch.float64)
    lin = linearize(problem, y.double(), a.double())
    scale_y, scale_a = scales(problem, lin)
    # Powers of two round nothing.
    scale_y = (scale_y * problem.tau_y.sqrt()).log2().round().exp2()
    scale_a = (scale_a * problem.tau_a.sqrt()).log2().round().exp2()
    return balance(problem, lin, (scale_y, scale_a), (1.0 / problem.tau_y, 1.0 / problem.tau_a))


def _in_units(jacobian: Balanced) -> tuple[Tensor, Tensor]:
    """Matrices ``(B, 2n, 2n)`` with a largest entry of about 1, and their units ``(B,)``.

    What is not finite becomes 0, in the unit NaN.
    """
    matrix = jacobian.matrix()
    size = matrix.abs().amax((-2, -1))
    known = torch.isfinite(size) & (size > 0)
    unit = torch.where(known, size.log2().round().exp2(), torch.nan)
    return torch.where(known[:, None, None], matrix / unit[:, None, None], 0.0), unit


def _by_powers_or_discs(matrix: Tensor) -> Tensor:
    rows = torch.linalg.vector_norm(matrix, dim=-1)
    # About in the middle between slow and fast modes, which then take few squarings alike.
    shift = (rows.amax(-1) * rows.amin(-1)).sqrt()
    inverse = resolvent(matrix, torch.where(shift > 0, shift, 1.0))
    verdict = spectral_radius(*inverse.transform(torch.zeros_like(shift)))
    open_ = (verdict == Verdict.UNDECIDED).nonzero().squeeze(-1)
    if open_.numel():
        verdict[open_] = side_of_zero(matrix[open_])
    return verdict


def leading_eigenvalues(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Each Jacobian's eigenvalue with the largest real part, complex128 ``(B,)``.

    Of a conjugate pair the one with the nonnegative imaginary part; NaN where the Jacobian is not
    finite. That no eigenvalue lies farther right is proved (:mod:`.leading`), or all of them are
    computed.
    """
    leading = torch.zeros(y.shape[0], dtype=torch.complex128, device=y.device)
    directly = y.shape[-1] < SMALLEST
    everyone = torch.arange(y.shape[0], device=y.device)
    with equations.full_precision(y):
        for part in everyone.split(_CIRCUITS_AT_A_TIME) if everyone.numel() else ():
            jacobian = _balanced(problem.select(part), y[part], a[part])
            guess = None if directly else first_guess(jacobian)
            for index in chunks(part - part[0], y.shape[-1]):
                matrix, unit = _in_units(jacobian.select(index))
                found = torch.zeros_like(unit, dtype=torch.complex128)
                proved = torch.zeros_like(unit, dtype=torch.bool)
                if guess is not None and not directly:
                    found, proved = rightmost_eigenvalues(matrix, guess.select(index).divided(unit))
                    # Circuits are alike: where this fails for most, it is not worth its time.
                    directly = 2 * int(proved.sum()) < index.numel()
                rest = (~proved).nonzero().squeeze(-1)
                if rest.numel():
                    found[rest] = _densely(matrix[rest])
                leading[part[index]] = found * unit
    return torch.complex(leading.real, leading.imag.abs())


def _densely(matrix: Tensor) -> Tensor:
    spectrum = torch.linalg.eigvals(matrix)
    return spectrum.gather(-1, spectrum.real.argmax(-1, keepdim=True)).squeeze(-1)
