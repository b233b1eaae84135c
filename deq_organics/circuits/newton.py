"""How far a state is from a fixed point, and Newton's method to it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .system import System

__all__ = ["Plain", "Polished", "solve"]


class Polished(NamedTuple):
    """States ``(B, N)`` after Newton's method."""

    state: Tensor
    residual: Tensor
    """``(B,)``, see :meth:`Plain.distance`."""
    jacobian: Tensor
    """``(B, N, N)``, at these states."""


class Plain:
    """A system of a flat batch, ``(B, N)``, without derivatives or transforms: for searches."""

    def __init__(self, system: System, tol: float) -> None:
        self._system = system
        self._shape = (*system.batch, system.width)
        self.size, self.width = system.batch.numel(), system.width
        eps = torch.finfo(system.dtype).eps
        # The part of the whole state to which rounding leaves a part of it undetermined.
        self.tol = max(tol, 16.0 * eps)
        self._floor = 16.0 * eps / self.tol
        self.rest = self._flat(system.rest)
        self.split = system.split

    def _flat(self, state: Tensor) -> Tensor:
        return self._system.plain(state, self._shape).reshape(-1, self.width)

    def field(self, state: Tensor) -> Tensor:
        """``f``, ``(B, N)``."""
        found = self._system.field(state.reshape(self._shape))
        return self._flat(found)

    def jacobian(self, state: Tensor) -> Tensor:
        """``(B, N, N)``; not finite where the field has no derivative."""
        found = self._system.jacobian(state.reshape(self._shape))
        found = self._system.plain(found, (*self._shape, self.width))
        return found.reshape(-1, self.width, self.width)

    def distance(self, step: Tensor, state: Tensor) -> Tensor:
        """How long a step of Newton's is in units of the state, ``(B,)``; NaN becomes infinite.

        That estimates how far the state is from a fixed point, in whatever units of time. Of all
        parts the largest ratio of lengths counts; parts below what rounding leaves of the whole
        state count as that large.
        """
        whole = torch.linalg.vector_norm(state, dim=-1)
        worst = torch.zeros_like(whole)
        for moved, part in zip(self._system.split(step), self._system.split(state), strict=True):
            length = torch.linalg.vector_norm(moved, dim=-1)
            unit = torch.maximum(torch.linalg.vector_norm(part, dim=-1), self._floor * whole)
            ratio = torch.where(length == 0, 0.0, length / unit)
            worst = torch.maximum(worst, ratio)
        return torch.where(torch.isfinite(worst), worst, torch.inf)

    def newton_step(self, jacobian: Tensor, slope: Tensor) -> Tensor:
        """``-J^-1 f``, ``(B, N)``; not finite where there is none."""
        return solve(jacobian, -slope)

    def polish(self, state: Tensor, steps: int, wanted: Tensor) -> Polished:
        """Newton's method for the ``wanted`` rows, as long as it comes closer; others stay."""
        slope, jacobian = self.field(state), self.jacobian(state)
        step = self.newton_step(jacobian, slope)
        residual = self.distance(step, state)
        going = wanted & torch.isfinite(residual)
        for _ in range(steps):
            going = going & (residual > 0)
            if not going.any():
                break
            trial = torch.where(going.unsqueeze(-1), state + step, state)
            slope, beyond = self.field(trial), self.jacobian(trial)
            next_step = self.newton_step(beyond, slope)
            after = self.distance(next_step, trial)
            # Far away a step may lead farther before the method converges.
            better = going & ((after < residual) | ((residual > 0.1) & (after < torch.inf)))
            kept = better.unsqueeze(-1)
            state, step = torch.where(kept, trial, state), torch.where(kept, next_step, step)
            jacobian = torch.where(kept.unsqueeze(-1), beyond, jacobian)
            residual = torch.where(better, after, residual)
            going = better
        return Polished(state, residual, jacobian)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``A^-1 b`` for ``(B, N, N)`` and ``(B, N)``; NaN where ``A`` is not finite or singular."""
    finite = torch.isfinite(matrix).all(-1).all(-1) & torch.isfinite(right).all(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(finite[:, None, None], matrix, identity)
    found, info = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))
    known = finite & (info == 0)
    return torch.where(known.unsqueeze(-1), found.squeeze(-1), torch.nan)
