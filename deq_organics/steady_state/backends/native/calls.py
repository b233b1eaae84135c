"""Calls of the C kernels: what they get, and what comes back."""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....native import addresses, call, pack
from ....plain_tensors import plain
from ....problem import Problem
from ...methods.auto import has_identity_recurrence
from ...methods.preconditioner import Preconditioner
from ...status import Solution
from ..base import Adjoint

__all__ = ["TILE", "Shared", "prepare", "solve", "solve_adjoint"]

# Samples that iterate together: whole blocks of the products' rows, and few enough for the caches.
TILE = 24
# Part of the accepted residual to iterate to.
_ADJOINT_TOLERANCE, _ADJOINT_MAX_ITER = 0.02, 60
# Multiplications that are worth a thread, and products of a sample in a solve.
_WORTH_A_THREAD, _PRODUCTS = 1 << 21, 20

_FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        ("neurons", "tile", "most_steps", "rectified", "identity", "drive_stride"), ctypes.c_int64
    ),
    **dict.fromkeys(("tolerance", "accepted", "largest_weight"), ctypes.c_float),
    **dict.fromkeys(
        (
            *("packed", "diagonal", "reference", "input_drive", "inhibitory_drive"),
            *("y", "a", "residual", "iterations", "settled", "status"),
            *("grad_y", "grad_a", "adjoint_y", "adjoint_a", "gained", "pooled"),
        ),
        ctypes.c_void_p,
    ),
}
_DTYPES = {"iterations": torch.int64, "status": torch.int64, "settled": torch.bool}


class _Circuits(ctypes.Structure):
    """``struct circuits`` of organics.h."""

    _fields_ = tuple(_FIELDS.items())


class Shared(NamedTuple):
    """What the circuits of a batch share, made ready for the kernels."""

    matrices: Tensor
    """``Wr``, ``W`` and the preconditioner's inverse, ``(3, n, n)``; ``W`` alone if ``Wr = I``"""
    diagonal: Tensor
    """Of ``Wr``, ``(n,)``"""
    reference: Tensor
    """Inhibitory firing rates ``(n,)`` to which the inverse belongs"""
    largest_weight: float
    """Of ``W``."""
    identity: bool
    """Whether ``Wr = I``."""


def prepare(problem: Problem) -> Shared:
    """For circuits with recurrent weights that share their weights."""
    wr, w = problem.recurrent_weight, plain(problem.normalization_weight)
    assert wr is not None
    identity = has_identity_recurrence(problem)
    if identity:
        one = wr.new_ones(wr.shape[-1])
        return Shared(w.unsqueeze(0), one, one, float(w.max()), identity)
    preconditioner = Preconditioner(problem)
    return Shared(
        torch.stack([wr, w, preconditioner.inverse]),
        plain(preconditioner.diagonal),
        plain(preconditioner.reference),
        float(w.max()),
        identity,
    )


def solve(
    problem: Problem, shared: Shared, tol: float, accepted: float, max_iter: int
) -> tuple[Solution, Tensor]:
    """The fast iteration's solution and which circuits ``(B,)`` need no second look.

    Those are solved to ``tol``, within reach and, by :meth:`Problem.relative_residual`, solved to
    ``accepted``; their drives are valid. Whether they are stable is another question.
    """
    d, c = plain(problem.input_drive), plain(problem.inhibitory_drive)
    size = d.shape[0]
    y, a = torch.empty_like(d), torch.empty_like(d)
    residual = d.new_empty(size)
    iterations = d.new_empty(size, dtype=torch.int64)
    settled = d.new_empty(size, dtype=torch.bool)
    _run(
        "steady_state",
        problem,
        shared,
        shared.matrices.mT,
        {"tolerance": tol, "accepted": accepted, "most_steps": max_iter},
        {
            "input_drive": d,
            "inhibitory_drive": c,
            "y": y,
            "a": a,
            "residual": residual,
            "iterations": iterations,
            "settled": settled,
        },
    )
    return Solution.unfollowed(y, a, residual, iterations, torch.zeros_like(iterations)), settled


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
    adjoint_y, adjoint_a, gained, pooled = (y.new_empty(y.shape) for _ in range(4))
    settled = y.new_empty(y.shape[0], dtype=torch.bool)
    matrices = shared.matrices
    if not shared.identity:
        matrices = torch.cat([matrices, matrices[:1].mT])
    _run(
        "steady_adjoint",
        problem,
        shared,
        matrices,
        {
            "tolerance": _ADJOINT_TOLERANCE * accepted,
            "accepted": accepted,
            "most_steps": _ADJOINT_MAX_ITER,
        },
        {
            "y": plain(y),
            "a": plain(a),
            "status": plain(status),
            "grad_y": None if g_y is None else plain(g_y),
            "grad_a": None if g_a is None else plain(g_a),
            "adjoint_y": adjoint_y,
            "adjoint_a": adjoint_a,
            "gained": gained,
            "pooled": pooled,
            "settled": settled,
        },
    )
    return Adjoint(adjoint_y, adjoint_a, gained, pooled, ~settled)


def _run(
    kernel: str,
    problem: Problem,
    shared: Shared,
    matrices: Tensor,
    numbers: dict[str, float],
    tensors: dict[str, Tensor | None],
) -> None:
    """One call for each thread's part of the samples."""
    size, n = problem.input_drive.shape
    given: dict[str, Tensor | None] = {
        "packed": pack(matrices),
        "diagonal": shared.diagonal,
        "reference": shared.reference,
        **tensors,
    }
    arguments = _Circuits(
        neurons=n,
        tile=min(TILE, size),
        rectified=int(problem.rectified),
        identity=int(shared.identity),
        drive_stride=0 if problem.inhibitory_drive.shape[0] == 1 else n,
        largest_weight=shared.largest_weight,
        **numbers,
        **addresses(given, _DTYPES),
    )
    call(kernel, arguments, size, size * n * (n + 8) * _PRODUCTS // _WORTH_A_THREAD)
