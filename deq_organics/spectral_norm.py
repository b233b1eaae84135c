r"""The factor that takes a matrix's largest singular value down to a bound, with its derivatives.

The largest singular value ``s`` of ``W`` has a gradient, ``u v^T``, only where it is simple. The
identity and every orthogonal matrix, where training starts, have ``n`` equal ones. There the
derivatives are those of the root mean square of the ``k`` largest ones that coincide, a smooth
function: its gradient ``U V^T / k`` is the shortest of the subgradients of ``s`` and depends on no
choice of singular vectors.

``min(1, bound / s)`` has a kink where ``s`` is the bound; there its derivatives are those from
within, 0. What single (for a float64 matrix: double) precision cannot tell apart counts as equal.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["bounding_scale"]


def bounding_scale(weight: Tensor, bound: float) -> Tensor:
    """``min(1, bound / s)``, ``(..., 1, 1)``, for the matrices ``weight``, ``(..., m, n)``.

    Its first three derivatives are right. It is computed in double precision from ``W^T W``:
    float32's singular value decomposition fails on matrices close to the identity, whose singular
    values all but coincide. NaN where a matrix is not finite.
    """
    if (
        torch.compiler.is_compiling()
        or weight.is_meta
        or torch._C._are_functorch_transforms_active()
        or forward_ad.unpack_dual(weight).tangent is not None
    ):
        return _differentiable(weight, bound)
    scale: Tensor = _BoundingScale.apply(weight, bound)
    return scale


class _BoundingScale(torch.autograd.Function):
    """Its gradient by one product; further derivatives are those of :func:`_differentiable`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bound: float) -> Tensor:
        matrix = weight.double()
        found = _decompose(matrix, weight.dtype, bound)
        scale = _exact_scale(found, bound)
        columns = int(found.multiplicity.max())
        top = (found.vectors * found.top.unsqueeze(-2))[..., -columns:]
        size = scale / (found.size * found.largest * found.multiplicity)
        slope = torch.where(found.outside, -size * (found.unit @ top) @ top.mT, 0.0)
        ctx.bound = bound
        ctx.save_for_backward(weight, slope.to(weight.dtype))
        return scale.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad * slope, None
        (result,) = torch.autograd.grad(
            _differentiable(weight, ctx.bound), weight, grad, create_graph=True
        )
        return result, None


class _Decomposition(NamedTuple):
    """Of matrices scaled to entries of at most 1; without derivatives."""

    size: Tensor
    """What the matrix was divided by, ``(..., 1, 1)``."""
    unit: Tensor
    """The scaled matrix, 0 where it is not finite."""
    values: Tensor
    """Its squared singular values, ascending, ``(..., n)``."""
    vectors: Tensor
    """Its right singular vectors as columns, ``(..., n, n)``."""
    largest: Tensor
    """The last of the values, ``(..., 1, 1)``."""
    top: Tensor
    """1 for the values that equal the largest, else 0, ``(..., n)``."""
    multiplicity: Tensor
    """How many these are, ``(..., 1, 1)``."""
    outside: Tensor
    """Whether the largest singular value exceeds the bound, ``(..., 1, 1)``."""


def _decompose(matrix: Tensor, dtype: torch.dtype, bound: float) -> _Decomposition:
    matrix = matrix.detach()
    size = matrix.abs().amax((-2, -1), keepdim=True).clamp_min(bound)
    unit = torch.where(torch.isfinite(size), matrix / size, 0.0)
    values, vectors = torch.linalg.eigh(unit.mT @ unit)
    largest = values[..., -1:, None]
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    slack = 8.0 * rounding * math.sqrt(matrix.shape[-1])
    top = (values >= largest.squeeze(-1) * (1.0 - slack)).to(values.dtype)
    return _Decomposition(
        size,
        unit,
        values,
        vectors,
        largest,
        top,
        top.sum(-1)[..., None, None],
        largest > (bound / size).square() * (1.0 + slack),
    )


def _exact_scale(found: _Decomposition, bound: float) -> Tensor:
    scale = (
        bound / found.size / torch.maximum(found.largest.clamp_min(0.0).sqrt(), bound / found.size)
    )
    return torch.where(torch.isfinite(found.size), scale, torch.nan)


def _differentiable(weight: Tensor, bound: float) -> Tensor:
    """:func:`bounding_scale` by operations that all have derivatives.

    The eigenvalues of ``W^T W`` that equal the largest belong to an invariant subspace. With the
    eigenvectors here as a fixed basis, of which ``T`` projects onto that subspace, perturbed
    matrices ``B`` in this basis have theirs spanned by ``T + Y`` with ``Y = B_ij / (l_j - l_i)``,
    ``j`` in it and ``i`` not, to first order. Rayleigh's quotient then gives the sum of its
    eigenvalues to third order.
    """
    matrix = weight.double()
    found = _decompose(matrix, weight.dtype, bound)
    unit = torch.where(torch.isfinite(found.size), matrix / found.size, 0.0)
    gram = unit.mT @ unit
    rotated = found.vectors.mT @ gram @ found.vectors
    mixed = (1.0 - found.top).unsqueeze(-1) * found.top.unsqueeze(-2) > 0
    gap = found.values.unsqueeze(-2) - found.values.unsqueeze(-1)
    tilt = torch.where(mixed, rotated / torch.where(mixed, gap, 1.0), 0.0)
    basis = torch.diag_embed(found.top) + tilt
    quotient = basis.mT @ rotated @ basis
    # (1 + Y^T Y)^-1 to the same order.
    total = torch.diagonal(quotient - tilt.mT @ tilt @ quotient, dim1=-2, dim2=-1).sum(-1)
    limit = bound / found.size
    square = torch.where(found.outside, total[..., None, None] / found.multiplicity, limit.square())
    scale = limit / square.sqrt()
    # The value stays exact where several singular values differ by rounding alone.
    return (scale + (_exact_scale(found, bound) - scale.detach())).to(weight.dtype)
