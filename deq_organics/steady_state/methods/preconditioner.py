"""An approximate inverse of the recurrence, which the fast iteration and its adjoint share."""

from collections.abc import Callable

import torch
from torch import Tensor

from ... import equations
from ...norms import length
from ...problem import Problem

__all__ = ["TYPICAL_INHIBITORY_DRIVE", "TYPICAL_LENGTH", "Preconditioner", "PreparedOnce"]

# Of a drive ``b z`` with ``|z| = 1``, and of ``(b0 sigma)^2``, for gains around 1/2 to 1.
TYPICAL_LENGTH = 0.7
TYPICAL_INHIBITORY_DRIVE = 0.25
# Within what a row of the inverse may differ from the reference by a factor.
_SMALLEST_FACTOR, _LARGEST_FACTOR = 1 / 16, 1e4
_LARGEST_INVERSE = 1e4


class Preconditioner:
    """``(I - D(1 - s) Wr)^-1`` for any ``s``, approximately, from its value at one reference.

    A factor for each row makes the inverse at the reference exact for every diagonal ``Wr``; a step
    of iterative refinement follows.

    Attributes:
        reference: A typical inhibitory firing rate ``s``, ``(n,)`` if the batch shares its weights,
            else ``(B, n)``. Where it is shared it depends on no sample, so that no sample moves
            another's iterates.
        inverse: The inverse there, ``(n, n)`` or ``(B, n, n)``.
        diagonal: Of ``Wr``, ``(n,)`` or ``(B, n)``.
    """

    def __init__(self, problem: Problem) -> None:
        wr = problem.recurrent_matrix()
        m = problem.exponent
        shared = problem.normalization_weight.ndim == 2 and wr.ndim == 2
        shared = shared and not (isinstance(m, Tensor) and m.shape[0] != 1)
        self.reference = _reference(problem, shared)
        self._wr = wr if shared else wr.expand(problem.batch_size, -1, -1)
        self.diagonal = self._wr.diagonal(dim1=-2, dim2=-1)
        self._row = 1.0 - (1.0 - self.reference) * self.diagonal
        self.inverse = _inverse(self._wr, 1.0 - self.reference)

    def apply_at_reference(self, right: Tensor) -> Tensor:
        """The inverse at ``s = reference``, applied to ``right`` ``(B, n)``."""
        return equations.matvec(self.inverse, right)

    def at(
        self, gain: Tensor, firing: Tensor | None, *, transpose: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """The (transposed) inverse at ``gain = 1 - s`` ``(B, n)``, as a function of ``(B, n)``.

        A silent neuron of the rectified model, where the mask ``firing`` ``(B, n)`` is false, takes
        no part in the recurrence: there the function returns its argument.
        """
        factor = (self._row / (1.0 - gain * self.diagonal)).clamp_(
            _SMALLEST_FACTOR, _LARGEST_FACTOR
        )

        def invert(right: Tensor) -> Tensor:
            if transpose:
                return factor * equations.matvec(self.inverse.mT, right)
            return equations.matvec(self.inverse, factor * right)

        def residual(right: Tensor, solution: Tensor) -> Tensor:
            if transpose:
                recurrent = equations.matvec(self._wr.mT, gain * solution)
                return right - solution + recurrent
            return torch.addcmul(right - solution, gain, equations.matvec(self._wr, solution))

        def apply(right: Tensor) -> Tensor:
            if firing is None:
                solution = invert(right)
                return solution + invert(residual(right, solution))
            active = torch.where(firing, right, 0.0)
            solution = torch.where(firing, invert(active), 0.0)
            left = torch.where(firing, residual(active, solution), 0.0)
            return torch.where(firing, solution + invert(left), right)

        return apply

    def select(self, keep: Tensor) -> None:
        """Go on with the samples that the mask ``keep`` of shape ``(B,)`` chooses."""
        if self._wr.ndim == 3:
            self.reference, self._row = self.reference[keep], self._row[keep]
            self._wr, self.inverse = self._wr[keep], self.inverse[keep]
            self.diagonal = self._wr.diagonal(dim1=-2, dim2=-1)


class PreparedOnce:
    """The preconditioner of a batch that shares its weights, built once for solve and adjoint."""

    def __init__(self) -> None:
        self._shared: Preconditioner | None = None

    def __call__(self, problem: Problem) -> Preconditioner:
        """That of ``problem``; where its weights are shared, every call has to be for them."""
        if self._shared is not None:
            return self._shared
        preconditioner = Preconditioner(problem)
        # One for each circuit takes as much memory as the weights, and changes as circuits finish.
        if preconditioner.inverse.ndim == 2:
            self._shared = preconditioner
        return preconditioner


def _reference(problem: Problem, shared: bool) -> Tensor:
    """The inhibitory firing rate, for ``Wr = I``, under a typical drive spread over all neurons."""
    n = problem.input_drive.shape[-1]
    if shared:
        drive = problem.input_drive.new_full((n,), TYPICAL_LENGTH / n**0.5)
        inhibitory_drive = (
            problem.inhibitory_drive[0]
            if problem.inhibitory_drive.shape[0] == 1
            else drive.new_full((n,), TYPICAL_INHIBITORY_DRIVE)
        )
    else:
        spread = length(problem.input_drive).unsqueeze(-1) / n**0.5
        drive = spread.expand_as(problem.input_drive)
        inhibitory_drive = problem.inhibitory_drive
    m = problem.exponent
    if shared and isinstance(m, Tensor):
        m = m[0]
    pool = equations.matvec(problem.normalization_weight, equations.power(drive, m))
    return equations.root(inhibitory_drive + pool, m)


def _inverse(wr: Tensor, gain: Tensor) -> Tensor:
    """``(I - D(gain) Wr)^-1``, the identity where that matrix is close to singular."""
    identity = torch.eye(wr.shape[-1], dtype=wr.dtype, device=wr.device)
    inverse, info = torch.linalg.inv_ex(identity - gain.unsqueeze(-1) * wr)
    size = inverse.abs().amax((-2, -1), keepdim=True)
    usable = (info == 0)[..., None, None] & (size < _LARGEST_INVERSE)
    return torch.where(usable, inverse, identity)
