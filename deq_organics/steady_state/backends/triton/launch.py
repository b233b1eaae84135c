"""Launches of the kernels: a whole batch's steady states, or adjoints, in one launch each."""

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .... import equations
from ....plain_tensors import plain
from ....problem import Problem
from ....stability.spectrum import is_stable
from ...methods.preconditioner import TYPICAL_INHIBITORY_DRIVE, TYPICAL_LENGTH, Preconditioner
from ...status import Solution
from ..base import Adjoint

__all__ = ["LARGEST_SIZE", "Shared", "prepare", "solve", "solve_adjoint"]

LARGEST_SIZE = 256
# A larger matrix does not fit into the registers of one program.
_LARGEST_INVERTED = 128
_DEPTH = 8
# Part of the accepted residual to iterate to.
_ADJOINT_TOLERANCE, _ADJOINT_MAX_ITER = 0.1, 60


class Shared(NamedTuple):
    """What the circuits of a batch share, made ready for the kernels."""

    matrices: Tensor
    """``Wr``, ``W`` and the preconditioner's inverse, ``(3, N, N)``, padded with zeros"""
    transposed: Tensor
    """The same, each transposed"""
    diagonal: Tensor
    """Of ``Wr``, ``(n,)``"""
    reference: Tensor
    """Inhibitory firing rates ``(n,)`` to which the inverse belongs"""


def prepare(problem: Problem) -> Shared:
    """For circuits with recurrent weights that share their weights."""
    assert problem.recurrent_weight is not None
    wr, w = plain(problem.recurrent_weight), plain(problem.normalization_weight)
    n, c, options = wr.shape[-1], problem.inhibitory_drive, _options(wr.shape[-1])
    if n > _LARGEST_INVERTED:
        preconditioner = Preconditioner(problem)
        matrices = wr.new_zeros(3, options["N"], options["N"])
        matrices[:, :n, :n] = torch.stack([wr, w, preconditioner.inverse])
        return Shared(
            matrices,
            matrices.mT.contiguous(),
            plain(preconditioner.diagonal),
            plain(preconditioner.reference),
        )
    if c.shape[0] > 1:
        c = c.new_full((n,), TYPICAL_INHIBITORY_DRIVE)
    matrices = wr.new_empty(3, options["N"], options["N"])
    diagonal, reference = wr.new_empty(n), wr.new_empty(n)
    shared = Shared(matrices, torch.empty_like(matrices), diagonal, reference)
    launch = ("N", "num_warps", "enable_fp_fusion")
    with torch.cuda.device_of(wr):
        _kernels().prepare_kernel[(2,)](
            plain(c),
            wr,
            w,
            *shared,
            n,
            TYPICAL_LENGTH / n**0.5,
            **{name: options[name] for name in launch},
        )
    return shared


def solve(
    problem: Problem,
    shared: Shared,
    tol: float,
    accepted: float,
    max_iter: int,
    verify_stability: bool,
) -> tuple[Solution, Tensor]:
    """The fast iteration's solution and which circuits ``(B,)`` need no second look.

    Those are solved to ``tol`` and, by :meth:`Problem.relative_residual`, to ``accepted``; their
    arguments are valid and, if ``verify_stability``, their fixed points proved stable.
    """
    vectors = (problem.input_drive, problem.inhibitory_drive, problem.tau_y, problem.tau_a)
    d, c, tau_y, tau_a = map(plain, vectors)
    size, n = d.shape
    y, a = torch.empty_like(d), torch.empty_like(d)
    residual = d.new_empty(size)
    iterations = torch.empty(size, dtype=torch.int64, device=d.device)
    status = torch.empty_like(iterations)
    settled = torch.empty(size, dtype=torch.bool, device=d.device)
    with torch.cuda.device_of(d):
        _kernels().solve_kernel[(size,)](
            d,
            c,
            shared.transposed,
            shared.diagonal,
            shared.reference,
            tau_y,
            tau_a,
            y,
            a,
            residual,
            iterations,
            status,
            settled,
            n,
            _stride(c),
            _stride(tau_y),
            _stride(tau_a),
            tol,
            accepted,
            max_iter,
            RECTIFIED=problem.rectified,
            **_options(n),
        )
    if verify_stability:
        settled = is_stable(problem, y, a, settled)
    return Solution.unfollowed(y, a, residual, iterations, status), settled


def solve_adjoint(
    problem: Problem,
    shared: Shared,
    y: Tensor,
    a: Tensor,
    status: Tensor,
    g_y: Tensor | None,
    g_a: Tensor | None,
    accepted: float,
) -> Adjoint:
    """The adjoint of ``(g_y, g_a)``, each ``(B, n)``, at the steady state; 0 without one."""
    y, a, status = map(plain, (y, a, status))
    size, n = y.shape
    failed = torch.empty(size, dtype=torch.bool, device=y.device)
    adjoint = Adjoint(
        torch.empty_like(y), torch.empty_like(y), torch.empty_like(y), torch.empty_like(y), failed
    )
    with torch.cuda.device_of(y):
        _kernels().adjoint_kernel[(size,)](
            y,
            a,
            equations.recurrent_drive(y, problem.recurrent_weight, problem.rectified),
            status,
            torch.zeros_like(y) if g_y is None else plain(g_y),
            torch.zeros_like(y) if g_a is None else plain(g_a),
            shared.matrices,
            shared.diagonal,
            shared.reference,
            *adjoint,
            n,
            _ADJOINT_TOLERANCE * accepted,
            accepted,
            _ADJOINT_MAX_ITER,
            RECTIFIED=problem.rectified,
            **_options(n),
        )
    return adjoint


def _stride(vector: Tensor) -> int:
    """From one circuit's row of ``(B, n)`` or ``(1, n)`` to the next one's."""
    return 0 if vector.shape[0] == 1 else vector.shape[1]


def _options(n: int) -> dict[str, Any]:
    """The padded size, and what of the matrices the registers can hold there."""
    padded = max(16, 1 << (n - 1).bit_length())
    return {
        "N": padded,
        "DEPTH": _DEPTH,
        "WEIGHTS": padded <= 128,
        "INVERSE": padded <= 64,
        "num_warps": 1 if padded == 16 else 4 if padded <= 64 else 8,
        "enable_fp_fusion": True,
    }


def _kernels() -> Any:
    # Imported late: triton is needed on a GPU only.
    return import_module("._kernels", __package__)
