"""One step of a stiff integration, each circuit with a step length and an error of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

from ....integration.rosenbrock import RODAS5P
from ....problem import Flow, Problem

__all__ = ["Step", "take_step", "tolerances"]

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
    """Try a step of length ``h`` ``(B,)`` from ``state``, whose :meth:`Problem.flow` is ``slope``.

    It is accepted if its error is at most ``rtol`` times ``scale``, the :func:`tolerances`.
    """
    n = state.shape[-1] // 2
    trial = RODAS5P.step(Flow(problem), torch.zeros_like(h), state, slope, h)
    assert trial.error is not None
    new = trial.end
    error = (trial.error / scale).abs().amax(-1) / rtol
    sound = torch.isfinite(error) & torch.isfinite(new).all(-1) & (new[:, n:] > 0).all(-1)
    accepted = sound & (error <= 1.0)
    factor = (_SAFETY * error.clamp_min(1e-12).pow(-1.0 / RODAS5P.error_order)).clamp(
        _SMALLEST_FACTOR, _LARGEST_FACTOR
    )
    factor = torch.where(sound, factor, _SMALLEST_FACTOR)
    return Step(torch.where(accepted.unsqueeze(-1), new, state), accepted, h * factor)
