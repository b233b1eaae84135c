r"""Cells whose states cannot leave a box: the box, and the weights that it needs.

docs/theory.md has the theorem and its proof. For inputs with ``|x| <= B`` and with ``A`` the
largest ``a``, a step of any sizes in (0, 1] maps the box ``|y| <= 1``, ``|a| <= A``, ``b`` and
``b0`` in [0, 1] into itself where, for every row,

    B sum_j |Wzx_ij| + max(1, sqrt(A) - 1) R_i <= 1   and   sum_j W_ij <= 1 - sigma^2 / A.

``R_i`` is the largest magnitude that a product of row ``i`` of ``Wr`` has: the sum of its entries'
magnitudes, or in Eq. 87, where ``Wr`` acts on ``relu(y)``, the larger one of the sums of its
positive and of its negative entries. Both terms of the first condition get fixed shares of it, so
that each weight is constrained by itself, and both conditions are met with a margin that no
rounding uses up.
"""

import torch
from torch import Tensor, nn

from deq_organics.checks import as_float_tensor, check_finite, check_number
from deq_organics.constrained import HoldsConstrained
from deq_organics.parametrizations import UnitInterval

__all__ = ["Box", "PoolRows", "RecurrentRows", "Rows", "choose_box"]

# The recurrent weights' part of the first condition, the rest is the input's; what both conditions
# leave for rounding; and the smallest dt/tau as a part of the largest.
RECURRENT_SHARE = 2 / 3
DRIVE_MARGIN, POOL_MARGIN = 0.01, 0.05
SMALLEST_STEP = 1 / 200
# The parts of their bounds at which the rows of the weights start.
_ROWS_START = 0.95

# Relative to the box, what a step rounds away at most, in units of the type's epsilon.
_ROUNDED = 4.0
# An assigned weight may exceed its bound by rounding.
_SLACK = 1e-5


class Box:
    """The box of a cell, and the bounds of its weights' rows.

    Args:
        semisaturation: ``sigma``.
        input_bound: Largest ``|x|``.

    Attributes:
        largest: Largest ``|y|``, ``|a|``, ``b`` and ``b0``.
        semisaturation, input_bound: The arguments.
        input_rows: Bound of ``sum_j |Wzx_ij|``.
        recurrent_rows: Bound of ``R_i``.
        normalization_rows: Bound of ``sum_j W_ij``.
    """

    def __init__(self, semisaturation: float, input_bound: float) -> None:
        self.semisaturation, self.input_bound = semisaturation, input_bound
        # At 4, |1 - sqrt(a)| is at most 1; a circuit may rest at sigma^2, which has to be inside.
        largest_a = 4.0 * max(1.0, semisaturation**2)
        self.largest = (1.0, largest_a, 1.0, 1.0)
        steepest = max(1.0, largest_a**0.5 - 1.0)
        drive = 1.0 - DRIVE_MARGIN
        self.input_rows = drive * (1.0 - RECURRENT_SHARE) / input_bound
        self.recurrent_rows = drive * RECURRENT_SHARE / steepest
        pool = 1.0 - semisaturation**2 / largest_a
        self.normalization_rows = (1.0 - POOL_MARGIN) * pool

    def constrain(self, cell: HoldsConstrained, *, nonnegative: bool) -> None:
        """Constrain the weights of a cell; ``nonnegative`` as in :class:`RecurrentRows`."""
        cell.constrain("input_weight", Rows(self.input_rows, "input_weight"))
        rows = RecurrentRows(self.recurrent_rows, nonnegative, "recurrent_weight")
        cell.constrain("recurrent_weight", rows)
        pool = PoolRows(self.normalization_rows, "normalization_weight")
        cell.constrain("normalization_weight", pool)

    def start(self, drive: Tensor, recurrent: Tensor, pool: Tensor) -> tuple[Tensor, ...]:
        """``Wzx``, ``Wr`` and ``W`` with rows that are scaled to nearly their bounds."""
        bounds = (self.input_rows, self.recurrent_rows, self.normalization_rows)
        weights = zip((drive, recurrent, pool), bounds, strict=True)
        return tuple(weight * (_ROWS_START * top / _row_sums(weight)) for weight, top in weights)

    def check(
        self, input_bound: float, semisaturation: Tensor, steps: dict[str, tuple[float, float]]
    ) -> None:
        """Raise where the box is not known to hold all states.

        Args:
            input_bound: Largest ``|x|``.
            semisaturation: ``sigma``, ``(n,)``, in the precision of the states.
            steps: Smallest and largest ``dt / tau`` by their names.
        """
        input_bound = check_number("input_bound", input_bound, low=0.0)
        if input_bound > self.input_bound:
            raise ValueError(
                f"input_bound: got {input_bound:g}, expected at most {self.input_bound:g}: the "
                "cell's option input_bound says for which inputs its weights are constrained"
            )
        if (largest := float(semisaturation.max())) > self.semisaturation * (1.0 + _SLACK):
            raise ValueError(
                f"semisaturation: got {largest:g}, expected at most {self.semisaturation:g}, for "
                "which the weights are constrained"
            )
        rounded = _ROUNDED * torch.finfo(semisaturation.dtype).eps
        # Gains are convex combinations, however they round.
        margins = {"step_y": DRIVE_MARGIN, "step_a": 0.75 * POOL_MARGIN}
        for name, (smallest, largest) in steps.items():
            # A step adds dt/tau times a margin towards the inside, and may round outwards.
            least = rounded / margins[name] if name in margins else 0.0
            if not (least <= smallest and largest <= 1.0 + _SLACK):
                raise ValueError(
                    f"{name}: got values from {smallest:.3g} to {largest:.3g}, expected {least:.2g}"
                    f" to 1: rounding in {semisaturation.dtype} outgrows what smaller steps change"
                )


def choose_box(recurrence: str, semisaturation: float, input_bound: float | None) -> Box | None:
    """The box of a bounded cell; None for others, which take no ``input_bound``."""
    if recurrence == "bounded":
        bound = 1.0 if input_bound is None else input_bound
        return Box(semisaturation, check_number("input_bound", bound, low=0.0, open_low=True))
    if input_bound is not None:
        raise ValueError(
            f"input_bound: got {input_bound!r} with recurrence={recurrence!r}, expected None: "
            "only recurrence='bounded' bounds the states"
        )
    return None


class Rows(nn.Module):
    """Matrices whose rows' absolute values sum to at most ``bound``.

    A row above the bound is scaled down to it, one within the bound is left as it is.

    Args:
        bound: The bound, positive.
        name: What errors call the matrix.
    """

    def __init__(self, bound: float, name: str = "weight") -> None:
        super().__init__()
        self.bound = check_number("bound", bound, low=0.0, open_low=True)
        self.name = name

    def forward(self, weight: Tensor) -> Tensor:
        """``weight_i * min(1, bound / sum_j |weight_ij|)``."""
        return weight * (self.bound / _row_sums(weight).clamp_min(self.bound))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``weight`` itself; ValueError if the absolute values of a row exceed the bound."""
        self._check(as_float_tensor(self.name, weight), _row_sums(weight.detach()))
        return weight

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}"

    def _check(self, weight: Tensor, sums: Tensor) -> None:
        check_finite(self.name, weight)
        largest = 0.0 if weight.is_meta else float(sums.max())
        if largest > self.bound * (1.0 + _SLACK):
            raise ValueError(
                f"{self.name}: got a row that sums to {largest:g}, expected at most {self.bound:g}"
            )


class PoolRows(Rows):
    """Matrices with entries in (0, 1), ``sigmoid(parameter)``, whose rows are so bounded."""

    def forward(self, weight: Tensor) -> Tensor:
        """``sigmoid(weight_i) * min(1, bound / sum_j sigmoid(weight_ij))``."""
        return super().forward(weight.sigmoid())

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``logit(weight)``; ValueError for entries outside (0, 1) or a row above the bound."""
        return UnitInterval(self.name).right_inverse(super().right_inverse(weight))


class RecurrentRows(Rows):
    """Square matrices whose rows are bounded in their products with vectors of the unit box.

    ``bound * tanh(parameter)`` is the diagonal, and the other entries share what it leaves. So
    learning many of them does not wear down the one by which a neuron remembers.

    Args:
        bound: Largest product of a row.
        nonnegative: The vectors are ``0 <= r <= 1``: a row's positive entries and its negative
            ones are bounded each by themselves; else both together, for ``|r| <= 1``.
        name: What errors call the matrix.
    """

    def __init__(self, bound: float, nonnegative: bool, name: str = "weight") -> None:
        super().__init__(bound, name)
        self.nonnegative = nonnegative

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix of the parameters ``(..., n, n)``."""
        diagonal = self.bound * _diagonal(weight).tanh()
        others = _off_diagonal(weight)
        positive, negative = (
            _share(part.sum(-1, keepdim=True), self.bound - taken.unsqueeze(-1))
            for part, taken in zip(self._signs(others), self._signs(diagonal), strict=True)
        )
        return diagonal.diag_embed() + others * torch.where(others < 0, negative, positive)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The parameters; ValueError if a row's product can exceed the bound."""
        as_float_tensor(self.name, weight)
        self._check(weight, torch.stack(self._signs(weight.detach())).sum(-1))
        # At the bound itself the parameter would be infinite, and its gradient 0.
        largest = 1.0 - 4.0 * torch.finfo(weight.dtype).eps
        own = (_diagonal(weight) / self.bound).clamp(-largest, largest)
        return own.atanh().diag_embed() + _off_diagonal(weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonnegative={self.nonnegative}"

    def _signs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes of the entries that can add up in a product, of those in the opposite one."""
        if self.nonnegative:
            return weight.clamp_min(0.0), (-weight).clamp_min(0.0)
        return weight.abs(), weight.abs()


def _share(total: Tensor, left: Tensor) -> Tensor:
    """The factor that reduces a sum to what is left; at most 1."""
    return left / torch.maximum(total, left).clamp_min(torch.finfo(total.dtype).tiny)


def _row_sums(weight: Tensor) -> Tensor:
    return weight.abs().sum(-1, keepdim=True)


def _diagonal(weight: Tensor) -> Tensor:
    return weight.diagonal(dim1=-2, dim2=-1)


def _off_diagonal(weight: Tensor) -> Tensor:
    return weight - _diagonal(weight).diag_embed()
