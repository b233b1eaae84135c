"""What of one population another one can be predicted from: the communication subspace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import as_float_tensor, check_positive_int, physical
from .spectral_density import CrossSpectrum

__all__ = ["CommunicationSubspace", "communication_subspace"]


@dataclass(frozen=True, eq=False)
class CommunicationSubspace:
    """How well low-rank regression predicts a target population from a source population."""

    performance: Tensor
    """Share of the target's variance that the best predictor of rank ``1, 2, ..., r`` explains,
    ``(..., r)``, in [0, 1] and not decreasing; per frequency ``(..., F, r)``. NaN without one."""
    total: Tensor
    """The target's total variance, ``(...)`` or ``(..., F)``."""

    def dimension(self, share: float = 0.95) -> Tensor:
        """Smallest rank with at least that share of the best performance; 0 where it is NaN."""
        best = self.performance[..., -1:]
        short = ~(self.performance >= share * best)
        rank = short.sum(-1) + 1
        return torch.where(best.squeeze(-1).isnan(), 0, rank)


def communication_subspace(
    covariance: Tensor | CrossSpectrum,
    source: Sequence[int] | Tensor,
    target: Sequence[int] | Tensor,
    *,
    rank: int | None = None,
) -> CommunicationSubspace:
    """Predictive performance of reduced-rank regression from a source to a target population.

    With ``C1 = cov(source)`` and ``C3 = cov(source, target)`` the best predictor of rank ``r``
    explains the sum of the ``r`` largest eigenvalues of ``C3^H C1^-1 C3``, over ``tr cov(target)``.
    A spectrum has its densities in place of the covariance, at each frequency. Directions in which
    the source has no variance, within rounding, predict nothing.

    Args:
        covariance: ``(..., k, k)``, as of :func:`deq_organics.stationary_covariance` or
            :meth:`deq_organics.Trials.covariance`; or a spectrum.
        source: Indices of the source's components.
        target: Indices of the target's, none of which is of the source.
        rank: Largest rank; None is the smaller number of components.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A shape or a value does not fit; the message names the argument.
    """
    if isinstance(covariance, CrossSpectrum):
        matrix, name = covariance.density, "covariance.density"
    else:
        matrix, name = as_float_tensor("covariance", covariance), "covariance"
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name}: got shape {tuple(matrix.shape)}, expected (..., k, k)")
    size = matrix.shape[-1]
    one, other = (
        _indices(label, value, size) for label, value in (("source", source), ("target", target))
    )
    if both := sorted(set(one) & set(other)):
        raise ValueError(f"target: got components of the source, {both}, expected others")
    most = min(len(one), len(other))
    wanted = most if rank is None else check_positive_int("rank", rank)
    if wanted > most:
        raise ValueError(f"rank: got {wanted}, expected at most {most}")
    double = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    known = physical(double).isfinite().all(-1).all(-1)
    identity = torch.eye(size, dtype=double.dtype, device=double.device)
    double = torch.where(known[..., None, None], double, identity)
    c1, c3 = double[..., one, :][..., one], double[..., one, :][..., other]
    total = double[..., other, :][..., other].diagonal(dim1=-2, dim2=-1).real.sum(-1)
    # In units of the standard deviations: small components count as much as large ones.
    spread = c1.diagonal(dim1=-2, dim2=-1).real.clamp(min=0).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    c1, c3 = c1 / spread.unsqueeze(-1) / spread.unsqueeze(-2), c3 / spread.unsqueeze(-1)
    values, vectors = torch.linalg.eigh(c1)
    cut = len(one) * torch.finfo(matrix.dtype).eps * values.detach().amax(-1, keepdim=True)
    some = values > cut
    white = torch.where(some, torch.where(some, values, 1.0).rsqrt(), 0.0)
    explained = torch.linalg.svdvals(white.unsqueeze(-1) * (vectors.mH @ c3)).square()
    share = explained[..., :wanted].cumsum(-1) / total.unsqueeze(-1)
    share = torch.where((known & (total > 0)).unsqueeze(-1), share.clamp(max=1.0), torch.nan)
    total = torch.where(known, total, torch.nan)
    real = matrix.real.dtype if matrix.is_complex() else matrix.dtype
    return CommunicationSubspace(share.to(real), total.to(real))


def _indices(name: str, value: Any, size: int) -> list[int]:
    if isinstance(value, Tensor):
        if value.ndim != 1 or value.is_floating_point() or value.is_complex():
            raise ValueError(
                f"{name}: got {value.dtype} of shape {tuple(value.shape)}, expected indices (m,)"
            )
        value = (
            value.nonzero().squeeze(-1).tolist() if value.dtype == torch.bool else value.tolist()
        )
    chosen = list(value)
    if not chosen or not all(type(i) is int and -size <= i < size for i in chosen):
        raise ValueError(f"{name}: got {chosen}, expected indices of {size} components")
    chosen = [i % size for i in chosen]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{name}: got {chosen}, expected each component once")
    return chosen
