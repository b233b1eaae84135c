"""What an integrator asks of a differential equation and of a method."""

from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Method", "Step", "VectorField", "is_autonomous"]


class VectorField(Protocol):
    """The right side of ``dx/dt = f(t, x)`` for ``B`` independent samples.

    One that does not depend on ``t`` may say so by an attribute ``autonomous = True``, which saves
    implicit methods its derivative by the time.
    """

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        """``f``, ``(B, k)``, at the times ``(B,)`` and states ``(B, k)``."""
        ...

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        """Derivative of ``f`` by the state, ``(B, k, k)``; only implicit methods ask for it."""
        ...

    def select(self, index: Tensor) -> "VectorField":
        """The field of the samples at the indices ``(B',)`` alone."""
        ...


def is_autonomous(field: VectorField) -> bool:
    """Whether the field says that it does not depend on the time."""
    return getattr(field, "autonomous", False)


class Step(NamedTuple):
    """A trial step of every sample, each tensor ``(B, k)``."""

    start: Tensor
    end: Tensor
    slope: Tensor
    """``f`` at the end: the next step begins with it."""
    error: Tensor | None
    """Estimate of the end's error; None from a method that has none."""
    increments: list[Tensor]
    """Stages in units of the state; with both ends they give the state in between."""

    def take(self, index: Tensor) -> "Step":
        """The step of the samples at the indices ``(B',)``."""
        error = None if self.error is None else self.error[index]
        increments = [increment[index] for increment in self.increments]
        return Step(self.start[index], self.end[index], self.slope[index], error, increments)


class Method(Protocol):
    """A one-step method; all of it differentiates but the choice of ``h``."""

    @property
    def error_order(self) -> int | None:
        """Power of ``h`` with which the error estimate falls; None without an estimate."""
        ...

    @property
    def interpolates(self) -> bool:
        """Whether :meth:`interpolate` is as accurate as the steps."""
        ...

    @property
    def needs_jacobian(self) -> bool:
        """Whether a step asks for the field's Jacobian."""
        ...

    def step(
        self, field: VectorField, time: Tensor, state: Tensor, slope: Tensor, h: Tensor
    ) -> Step:
        """From ``(time, state)``, with the derivative ``slope`` there, by ``h`` ``(B,)``.

        Samples with ``h = 0`` stay where they are, exactly.
        """
        ...

    def interpolate(self, step: Step, part: Tensor) -> Tensor:
        """The states after the part in [0, 1], ``(...)``, of steps ``(..., k)``."""
        ...
