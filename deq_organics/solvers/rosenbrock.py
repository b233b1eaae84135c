"""One step of a stiff integration, each circuit with a step length and an error of its own.

RODAS (Hairer and Wanner, Solving Ordinary Differential Equations II, 1996, Section IV.10): a
Rosenbrock method of order 4 with six stages, L-stable and stiffly accurate, with an embedded
method of order 3. A step costs one factorization of a matrix and no iteration.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem

__all__ = ["Step", "flow", "take_step", "tolerances"]

_GAMMA = 0.25
# Row i: coefficients of the earlier stages in the state of stage i + 2 ...
_STATE = (
    (1.544,),
    (0.9466785280815826, 0.2557011698983284),
    (3.314825187068521, 2.896124015972201, 0.9986419139977817),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950, 1.0),
)
# ... and in its right-hand side.
_SHIFT = (
    (-5.6688,),
    (-2.430093356833875, -0.2063599157091915),
    (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
    (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
    (
        8.083246795921522,
        -7.981132988064893,
        -31.52159432874371,
        16.31930543123136,
        -6.058818238834054,
    ),
)
_SAFETY, _SMALLEST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 6.0
# A drive of this size times the largest `y` still counts for the tolerance: y starts at zero.
_DRIVE_SHARE = 1e-2


class Step(NamedTuple):
    """A trial step of each circuit."""

    state: Tensor
    """``(y, a)`` after it, ``(B, 2n)``; before it, where it is rejected."""
    accepted: Tensor
    """``(B,)``"""
    next_length: Tensor
    """Of the next step, ``(B,)``."""


def flow(problem: Problem, state: Tensor) -> Tensor:
    """``(dy/dt, da/dt)`` at ``state = (y, a)``, both ``(B, 2n)``."""
    y, a = state.chunk(2, -1)
    residual_y, residual_a = problem.residual(y, a)
    return torch.cat([residual_y / problem.tau_y, residual_a / problem.tau_a], -1)


def tolerances(problem: Problem, state: Tensor) -> Tensor:
    """The size ``(B, 2n)`` of each entry, which an error of it is compared with.

    That of the largest ``y`` for every ``y``, whatever its unit, and its own for every ``a``.
    """
    y, a = state.chunk(2, -1)
    largest = torch.maximum(
        y.abs().amax(-1, keepdim=True),
        _DRIVE_SHARE * problem.input_drive.abs().amax(-1, keepdim=True),
    )
    return torch.cat([torch.where(largest > 0, largest, 1.0).expand_as(y), a], -1)


def take_step(
    problem: Problem, state: Tensor, slope: Tensor, scale: Tensor, h: Tensor, rtol: float
) -> Step:
    """Try a step of length ``h`` ``(B,)`` from ``state``, whose :func:`flow` is ``slope``.

    It is accepted if its error is at most ``rtol`` times ``scale``, the :func:`tolerances`.
    """
    n = state.shape[-1] // 2
    length = h.unsqueeze(-1)
    identity = torch.eye(2 * n, dtype=state.dtype, device=state.device)
    matrix = identity - (_GAMMA * length).unsqueeze(-1) * problem.jacobian(*state.chunk(2, -1))
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)

    def solve(right: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.lu_solve(factors, pivots, right.unsqueeze(-1))
        return solution.squeeze(-1)

    stages = state.new_empty(*state.shape, len(_STATE) + 1)
    stages[..., 0] = solve(_GAMMA * length * slope)
    new = state
    for i, (in_state, in_shift) in enumerate(zip(_STATE, _SHIFT, strict=True), start=1):
        known = stages[..., :i]
        new = state + known @ state.new_tensor(in_state)
        right = torch.addcmul(known @ state.new_tensor(in_shift), length, flow(problem, new))
        stages[..., i] = solve(_GAMMA * right)
    last = stages[..., -1]
    new = new + last
    error = (last / scale).abs().amax(-1) / rtol
    sound = torch.isfinite(error) & torch.isfinite(new).all(-1) & (new[:, n:] > 0).all(-1)
    accepted = sound & (error <= 1.0)
    factor = (_SAFETY * error.clamp_min(1e-12).pow(-0.25)).clamp(_SMALLEST_FACTOR, _LARGEST_FACTOR)
    factor = torch.where(sound, factor, _SMALLEST_FACTOR)
    return Step(torch.where(accepted.unsqueeze(-1), new, state), accepted, h * factor)
