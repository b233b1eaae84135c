"""Vector fields of circuits whose input changes in time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import equations
from ..problem import Problem
from .drives import Drive

__all__ = ["DrivenFlow", "GainLaw", "GainedFlow"]


class DrivenFlow:
    """The circuits' equations with drives of the time, for states ``(y, a)``, ``(B, 2n)``."""

    def __init__(self, problem: Problem, input_drive: Drive, inhibitory_drive: Drive) -> None:
        self._problem = problem
        self._input_drive, self._inhibitory_drive = input_drive, inhibitory_drive

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        now = self._problem._replace(
            input_drive=self._input_drive(time), inhibitory_drive=self._inhibitory_drive(time)
        )
        return now.flow(state)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._problem.jacobian(*state.chunk(2, -1))

    def select(self, index: Tensor) -> "DrivenFlow":
        drives = (self._input_drive.select(index), self._inhibitory_drive.select(index))
        return DrivenFlow(self._problem.select(index), *drives)


class GainLaw(NamedTuple):
    """Parameters of Eq. 17 for one gain of a flat batch."""

    weight_x: Tensor
    """``(n, k)`` or ``(B, n, k)``"""
    weight_y: Tensor
    """``(n, n)`` or ``(B, n, n)``"""
    weight_a: Tensor
    """``(n, n)`` or ``(B, n, n)``"""
    tau: Tensor
    """``(B, n)``"""

    def select(self, index: Tensor) -> "GainLaw":
        x, y, a = (weight if weight.ndim == 2 else weight[index] for weight in self[:3])
        return GainLaw(x, y, a, self.tau[index])

    def flow(self, gain: Tensor, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """``dg/dt``, ``(B, n)``."""
        return equations.input_gain_residual(gain, x, y, a, *self[:3]) / self.tau

    def rows(self, gain: Tensor, x: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of :meth:`flow` by ``y``, ``a`` and the gain, each ``(B, n, n)``."""
        level = equations.input_gain_residual(gain, x, y, a, *self[:3]) + gain
        steep = (level * (1.0 - level) / self.tau).unsqueeze(-1)
        return steep * self.weight_y, steep * self.weight_a, torch.diag_embed(-1.0 / self.tau)


class GainedFlow:
    """Eq. 1 or 87 together with Eq. 17: states ``(y, a)`` and those of ``b`` and ``b0`` that move.

    A gain is either a law, or values ``(B, n)`` that stay.
    """

    def __init__(
        self,
        problem: Problem,
        z: Drive,
        x: Drive,
        semisaturation: Tensor,
        gains: Sequence[GainLaw | Tensor],
    ) -> None:
        self._problem, self._z, self._x = problem, z, x
        self._semisaturation, self._gains = semisaturation, tuple(gains)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``y, a, b, b0``, each ``(B, n)``."""
        parts = list(state.split(self._problem.input_drive.shape[-1], -1))
        y, a = parts[:2]
        moving = iter(parts[2:])
        b, b0 = (gain if isinstance(gain, Tensor) else next(moving) for gain in self._gains)
        return y, a, b, b0

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        y, a, b, b0 = self._parts(state)
        now = self._problem._replace(
            input_drive=b * self._z(time),
            inhibitory_drive=equations.power(b0 * self._semisaturation, self._problem.exponent),
        )
        x, flows = self._x(time), [now.flow(state[:, : 2 * y.shape[-1]])]
        for gain, law in zip((b, b0), self._gains, strict=True):
            if isinstance(law, GainLaw):
                flows.append(law.flow(gain, x, y, a))
        return torch.cat(flows, -1)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        y, a, b, b0 = self._parts(state)
        problem, m, sigma = self._problem, self._problem.exponent, self._semisaturation
        level = b0 * sigma
        rise = m * sigma * equations.power(level, m - 1.0) * level.sign()
        none = torch.zeros_like(torch.diag_embed(y))
        columns = ((self._z(time) / problem.tau_y, None), (None, rise / problem.tau_a))
        moving = [i for i, law in enumerate(self._gains) if isinstance(law, GainLaw)]
        above = [
            torch.cat([none if part is None else torch.diag_embed(part) for part in columns[i]], -2)
            for i in moving
        ]
        rows = [torch.cat([problem.jacobian(y, a), *above], -1)]
        for i in moving:
            law = self._gains[i]
            assert isinstance(law, GainLaw)
            by_y, by_a, by_itself = law.rows((b, b0)[i], self._x(time), y, a)
            own = [by_itself if i == other else none for other in moving]
            rows.append(torch.cat([by_y.expand_as(none), by_a.expand_as(none), *own], -1))
        return torch.cat(rows, -2)

    def select(self, index: Tensor) -> "GainedFlow":
        gains = [
            gain[index] if isinstance(gain, Tensor) else gain.select(index) for gain in self._gains
        ]
        return GainedFlow(
            self._problem.select(index),
            self._z.select(index),
            self._x.select(index),
            self._semisaturation[index],
            gains,
        )
