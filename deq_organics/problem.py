"""All that describes circuits, as one tuple; flat, with one batch dimension, for the solvers."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import equations
from .checks import joint_shape
from .norms import size_of, smallest_step

__all__ = ["CORE_DIMENSIONS", "Flow", "Problem"]

# Of the tensors of a problem, in their order: how many of its last dimensions describe one circuit.
# The recurrent weight may be None, and the exponent a number.
CORE_DIMENSIONS = {
    "input_drive": 1,
    "inhibitory_drive": 1,
    "recurrent_weight": 2,
    "normalization_weight": 2,
    "tau_y": 1,
    "tau_a": 1,
    "exponent": 1,
}


class Problem(NamedTuple):
    """Circuits of ``n`` neurons of each type.

    Shapes are those of :meth:`flat` problems, ``B`` circuits with one batch dimension; shared
    tensors have batch size 1 or none. What a method says of ``(B, n)`` holds for any leading
    dimensions that broadcast, but for :meth:`select` and ``batch_size``.
    """

    input_drive: Tensor
    """``(B, n)``"""
    inhibitory_drive: Tensor
    """``(B, n)`` or ``(1, n)``"""
    recurrent_weight: Tensor | None
    """``(B, n, n)``, ``(n, n)`` or None for the identity"""
    normalization_weight: Tensor
    """``(B, n, n)`` or ``(n, n)``"""
    tau_y: Tensor
    """``(B, n)`` or ``(1, n)``"""
    tau_a: Tensor
    """``(B, n)`` or ``(1, n)``"""
    exponent: float | Tensor
    """A number, or ``(B, n)`` or ``(1, n)``, one per neuron."""
    rectified: bool

    def tensors(self) -> Iterator[Tensor]:
        """Those that are there, in their order."""
        for name in CORE_DIMENSIONS:
            if isinstance(tensor := getattr(self, name), Tensor):
                yield tensor

    def map(self, function: Callable[[Tensor, int], Tensor]) -> "Problem":
        """The same circuits with ``function(tensor, core)`` for every tensor that is there.

        ``core`` is how many of its last dimensions describe one circuit: 1 for vectors, 2 for
        matrices.
        """
        changed: dict[str, Any] = {}
        for name, core in CORE_DIMENSIONS.items():
            tensor = getattr(self, name)
            if isinstance(tensor, Tensor):
                changed[name] = function(tensor, core)
        return self._replace(**changed)

    def flat(self) -> "Problem":
        """With one batch dimension, from tensors with any leading dimensions.

        ``input_drive`` has all of them. Tensors that the whole batch shares stay shared.
        """
        batch, n = self.input_drive.shape[:-1], self.input_drive.shape[-1]

        def flat(tensor: Tensor, core: int) -> Tensor:
            own = (n,) * core
            lead = tensor.shape[:-core]
            if all(size == 1 for size in lead):
                one = own if core == 2 else (1, n)
                return tensor.expand(*lead, *own).reshape(one)
            return tensor.expand(*batch, *own).reshape(-1, *own)

        return self.map(flat)

    def leading_shape(self) -> torch.Size:
        """The leading dimensions of all tensors, broadcast together."""
        shapes = []
        for name, core in CORE_DIMENSIONS.items():
            if isinstance(tensor := getattr(self, name), Tensor):
                shapes.append(tensor.shape[:-core])
        return joint_shape(*shapes)

    @property
    def batch_size(self) -> int:
        return self.input_drive.shape[0]

    def select(self, index: Tensor) -> "Problem":
        """The circuits chosen by a boolean mask ``(B,)`` or by indices."""

        def pick(tensor: Tensor, core: int) -> Tensor:
            batched = tensor.ndim > core and tensor.shape[0] == self.batch_size
            return tensor[index] if batched else tensor

        return self.map(pick)

    def to(self, *args: Any, **kwargs: Any) -> "Problem":
        """The same circuits on another device or in another dtype, as :meth:`torch.Tensor.to`."""
        return self.map(lambda tensor, core: tensor.to(*args, **kwargs))

    def recurrent_matrix(self) -> Tensor:
        """``Wr`` as a matrix, also where it is the identity."""
        if self.recurrent_weight is not None:
            return self.recurrent_weight
        d = self.input_drive
        return torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)

    def residual(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``(tau_y dy/dt, tau_a da/dt)``."""
        return equations.residual(y, a, *self[:4], self.exponent, self.rectified)

    def identity_steady_state(self) -> tuple[Tensor, Tensor]:
        """The fixed point ``(y, a)`` that the circuits have with ``Wr = I``."""
        return equations.identity_steady_state(
            self.input_drive,
            self.inhibitory_drive,
            self.normalization_weight,
            self.exponent,
            self.rectified,
        )

    def linearize(self, y: Tensor, a: Tensor) -> equations.Linearization:
        """The factors of the Jacobian at states ``(B, n)``."""
        return equations.linearize(y, a, self.recurrent_weight, self.exponent, self.rectified)

    def flow(self, state: Tensor) -> Tensor:
        """``(dy/dt, da/dt)`` at ``state = (y, a)``, both ``(B, 2n)``."""
        residual_y, residual_a = self.residual(*state.chunk(2, -1))
        return torch.cat([residual_y / self.tau_y, residual_a / self.tau_a], -1)

    def jacobian(self, y: Tensor, a: Tensor, *, unit_tau: bool = False) -> Tensor:
        """Jacobian ``(B, 2n, 2n)`` of the vector field, or of ``residual`` if ``unit_tau``."""
        tau_y, tau_a = (1.0, 1.0) if unit_tau else (self.tau_y, self.tau_a)
        weights = (self.recurrent_weight, self.normalization_weight)
        return equations.jacobian(y, a, *weights, tau_y, tau_a, self.exponent, self.rectified)

    def relative_residual(self, y: Tensor, a: Tensor) -> Tensor:
        """Backward error ``(B,)``: the larger of both equations' residuals, each by its scale.

        ``max(|r_y| / max(|y|, |d|), max_i |r_a,i| / a_i)``: Euclidean norms for ``y``, whose terms
        may cancel, and neuron by neuron for ``a``, a sum of positive terms. Hence it is free of
        units and unchanged when a circuit's inputs are rescaled. It is at least :meth:`graininess`.
        """
        residual_y, residual_a, size = self.scaled_residual(y, a)
        length_y = torch.linalg.vector_norm(y / size, dim=-1)
        length_d = torch.linalg.vector_norm(self.input_drive / size, dim=-1)
        scale = torch.maximum(length_y, length_d)
        # Zero input: the state is exact, or `residual_y` is not zero.
        error_y = torch.linalg.vector_norm(residual_y, dim=-1) / torch.where(scale > 0, scale, 1.0)
        error = torch.maximum(error_y, residual_a.abs().amax(-1))
        return torch.maximum(error, self.graininess(y, a))

    def graininess(self, y: Tensor, a: Tensor) -> Tensor:
        """What part of a state ``(B,)`` the steps between the smallest numbers of the dtype hide.

        Products that are rounded to such a step leave no trace in a residual.
        """
        step = y.new_full((), smallest_step(y.dtype)) * y.shape[-1] ** 0.5
        largest = torch.maximum(y.abs().amax(-1), self.input_drive.abs().amax(-1))
        in_y = torch.where(largest > 0, step / largest, 0.0)
        return torch.maximum(in_y, step / a.amin(-1))

    def scaled_residual(self, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``tau_y dy/dt / size``, ``tau_a da/dt / a`` and ``size`` ``(B, 1)`` of ``y`` and ``d``.

        Nothing in it overflows or underflows unless the state or its equations do.
        """
        size = size_of(y, self.input_drive)
        s = equations.inhibitory_firing_rate(a, self.exponent)
        recurrent = equations.recurrent_drive(y, self.recurrent_weight, self.rectified)
        residual_y = torch.addcmul(self.input_drive - y, 1.0 - s, recurrent)
        # (y+ + y-) (a+)^m is the power of y a+.
        normalized = equations.drive(y, self.rectified) * s
        pool = equations.pooled_power(self.normalization_weight, normalized, self.exponent)
        return residual_y / size, (self.inhibitory_drive - a + pool) / a, size


class Flow:
    """The circuits' equations as a vector field of states ``(y, a)``, ``(B, 2n)``."""

    autonomous = True

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        return self._problem.flow(state)

    def jacobian(self, time: Tensor, state: Tensor) -> Tensor:
        return self._problem.jacobian(*state.chunk(2, -1))

    def select(self, index: Tensor) -> "Flow":
        return Flow(self._problem.select(index))
