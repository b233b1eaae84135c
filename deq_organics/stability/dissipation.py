"""A quick proof of stability: the circuit dissipates, but for one mode that decays by itself.

In balanced coordinates ``x`` most Jacobians ``J`` have a negative definite symmetric part: then
``|x|^2`` decreases along the solutions of the linearized equations, whatever the time constants.
Where the normalization loop oscillates, its mode sticks out. With an orthonormal basis ``Z`` of one
mode (``E = J Z - Z B`` is nearly 0) and the ``G`` that solves ``B^T G + G B = -I``, there is a
``g`` for which

    V = xi^T G xi + g |eta|^2,    xi = Z^T x,    eta = x - Z xi

decreases if ``-eta^T J eta >= w |eta|^2`` and ``2 |G Z^T J (I - Z Z^T)| |E| < w``. A Cholesky
factorization in single precision, with a margin for its rounding, shows the former; the rest is
done in double precision.
"""

import torch
from torch import Tensor

from ..problem import Problem
from . import native
from .balanced import Balanced, balance, chunks, linearize, scales

__all__ = ["dissipates"]

# The Chebyshev interval, in units of the fastest rate, and the filter's degree.
_CENTRE, _HALF_WIDTH, _DEGREE = -0.9, 0.6, 20
# Of the Krylov space that the mode is taken from.
_DIMENSION = 4
# ``w``, in units of each coordinate's rate.
_DISSIPATION = 0.02
# Weight of the mode in the matrix whose definiteness shows what is left without it.
_MODE_WEIGHT = 8.0
_DEPENDENT = 1e-6
_SEED = 7919


def dissipates(problem: Problem, y: Tensor, a: Tensor) -> Tensor:
    """Which circuits ``(B,)`` are shown to be stable at the states ``(B, n)``."""
    # On other devices float32 may mean TF32 somewhere.
    quick = problem.to(torch.float32 if y.device.type == "cpu" else torch.float64)
    double = problem.to(torch.float64)
    exact = linearize(double, y.double(), a.double())
    rounded = exact.map(lambda part: part.to(quick.input_drive.dtype))
    scale_y, scale_a = scales(quick, rounded)
    one = torch.ones_like(scale_y[:1])
    unit = balance(quick, rounded, (scale_y, scale_a), (one, one))
    n = y.shape[-1]
    everyone = torch.arange(y.shape[0], device=y.device)
    proved = torch.zeros_like(everyone, dtype=torch.bool)
    for index in _chunks(unit, everyone):
        proved[index] = _proved(unit.select(index), 0.0)
        # Circuits are alike: where a mode of the first ones sticks out, it does in most others.
        if 2 * int(proved[index].sum()) < index.numel():
            break
    left = (~proved).nonzero().squeeze(-1)
    if left.numel() and 2 * n >= _DIMENSION:
        double, exact = double.select(left), exact.map(lambda part: part[left])
        roots = double.tau_y.sqrt(), double.tau_a.sqrt()
        scale = (scale_y[left].double() * roots[0], scale_a[left].double() * roots[1])
        jacobian = balance(double, exact, scale, (1.0 / double.tau_y, 1.0 / double.tau_a))
        root = torch.cat([part.expand(left.numel(), n) for part in roots], -1)
        proved[left] = _dissipates_but_for_one_mode(jacobian, unit.select(left), root)
    return proved


def _chunks(jacobian: Balanced, index: Tensor) -> tuple[Tensor, ...]:
    """Circuits that are proved at a time: a few, then all others where none needs memory."""
    few = chunks(index, jacobian.pool.shape[-1])
    if len(few) < 2 or native.refusal(jacobian) is not None:
        return few
    return few[0], index[len(few[0]) :]


def _proved(jacobian: Balanced, bound: float, added: Tensor | None = None) -> Tensor:
    """Which forms ``-(J + J^T)``, plus the squares of columns ``(B, 2n, 2)``, exceed ``bound``."""
    if native.refusal(jacobian) is None:
        return native.exceeds(jacobian, bound, added)
    form = jacobian.dissipation()
    if added is not None:
        for column in added.unbind(-1):
            form.addcmul_(column.unsqueeze(-1), column.unsqueeze(-2))
    return _exceeds(form, bound, jacobian.length())


def _exceeds(matrix: Tensor, bound: float, length: Tensor) -> Tensor:
    """Which symmetric matrices, given by their upper triangles, exceed ``bound`` times ``I``.

    It overwrites them. Their entries may be sums of a few products of rounded factors, of norm
    ``length`` ``(B,)`` at most, and of terms that the trace bounds: the margin holds for these.
    """
    size = matrix.shape[-1]
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    # A factorization is that of a matrix within size + 1 roundings of the trace.
    rounding = (size + 32) * torch.finfo(matrix.dtype).eps
    margin = rounding * (diagonal.abs().sum(-1) + 2.0 * size + length)
    diagonal.sub_(bound + margin.unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(matrix.mT)
    return (info == 0) & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all(-1)


def _dissipates_but_for_one_mode(jacobian: Balanced, unit: Balanced, root: Tensor) -> Tensor:
    """Which circuits ``(B,)`` the module's argument shows to be stable.

    ``jacobian`` is in the coordinates ``x``, in double precision. ``unit`` is the same for
    ``tau = 1``: multiplied by ``1 / root`` from both sides it is ``jacobian``.
    """
    mode, image, matrix = _leading_mode(jacobian)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    determinant = matrix[:, 0, 0] * matrix[:, 1, 1] - matrix[:, 0, 1] * matrix[:, 1, 0]
    decays = (trace < 0) & (determinant > 0)
    identity = torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    adjugate = trace[:, None, None] * identity - matrix
    energy = -(determinant[:, None, None] * identity + adjugate.mT @ adjugate)
    energy = energy / (2.0 * trace * determinant)[:, None, None]
    excess = image - mode @ matrix
    rows = torch.stack([jacobian.apply_transposed(mode[..., k]) for k in range(2)], 1)
    coupling = energy @ (rows - (rows @ mode) @ mode.mT)
    norms = [
        torch.linalg.vector_norm(root.unsqueeze(-1) * part, dim=(-2, -1))
        for part in (excess, coupling.mT)
    ]
    proved = decays & (2.01 * norms[0] * norms[1] < _DISSIPATION)
    # What is left without the mode: the quadratic form of `unit` for `root * eta`.
    added = root.unsqueeze(-1) * mode
    size = torch.linalg.vector_norm(added, dim=(-2, -1))
    stretched = torch.linalg.vector_norm(root.unsqueeze(-1) * image, dim=(-2, -1))
    weight = _MODE_WEIGHT * (1.0 + (stretched / size).square())
    added = (added * (weight.sqrt() / size)[:, None, None]).to(unit.pool.dtype)
    # Circuits that the mode excludes already are not looked at.
    for index in _chunks(unit, proved.nonzero().squeeze(-1)):
        proved[index] = _proved(unit.select(index), 2.0 * _DISSIPATION, added[index])
    return proved


def _leading_mode(jacobian: Balanced) -> tuple[Tensor, Tensor, Tensor]:
    """An orthonormal basis ``Z`` ``(B, 2n, 2)`` of about the leading mode, ``J Z`` and ``Z^T J Z``.

    Where the mode has one dimension only, the second column is 0 and decays at the rate 1.
    """
    krylov = _filtered(jacobian)
    krylov = torch.where(torch.isfinite(krylov).all((-2, -1), keepdim=True), krylov, 0.0)
    basis = torch.linalg.qr(krylov)[0]
    images = torch.stack([jacobian.apply(basis[..., k]) for k in range(_DIMENSION)], -1)
    projected = basis.mT @ images
    projected = torch.where(torch.isfinite(projected).all((-2, -1), keepdim=True), projected, 0.0)
    values, vectors = torch.linalg.eig(projected)
    order = values.real.argsort(-1, descending=True)[:, :2]
    first, second = values.gather(-1, order).unbind(-1)
    vectors = vectors.gather(-1, order.unsqueeze(1).expand(-1, _DIMENSION, -1))
    # Of a conjugate pair the real and the imaginary part; else two real ones, or the only one.
    other = torch.where((second.imag == 0).unsqueeze(-1), vectors[..., 1].real, 0.0)
    other = torch.where((first.imag != 0).unsqueeze(-1), vectors[..., 0].imag, other)
    one = torch.nn.functional.normalize(vectors[..., 0].real, dim=-1)
    length = torch.linalg.vector_norm(other, dim=-1, keepdim=True)
    for _ in range(2):
        other = other - one * (one * other).sum(-1, keepdim=True)
    rest = torch.linalg.vector_norm(other, dim=-1, keepdim=True)
    missing = ~(rest > _DEPENDENT * length)
    pair = torch.stack([one, torch.where(missing, 0.0, other / rest)], -1)
    matrix = pair.mT @ projected @ pair
    matrix[:, 1, 1] = torch.where(missing.squeeze(-1), -1.0, matrix[:, 1, 1])
    return basis @ pair, images @ pair, matrix


def _filtered(jacobian: Balanced) -> Tensor:
    """The last iterates ``(B, 2n, k)`` of Chebyshev's filter, which leaves the leading modes.

    In single precision: they need not be exact.
    """
    single = jacobian.map(torch.Tensor.float)
    fastest = torch.maximum(single.decay_y.amax(-1), single.decay_a.amax(-1)).unsqueeze(-1)
    size, n = single.pool.shape
    generator = torch.Generator().manual_seed(_SEED)
    start = torch.randn(2 * n, generator=generator, device="cpu").to(single.pool)
    # The recurrence of Chebyshev's polynomials, divided by their values at 0.
    ratio = -_HALF_WIDTH / _CENTRE
    centre, step = _CENTRE * fastest, 1.0 / (_HALF_WIDTH * fastest)
    before = start.expand(size, -1)
    now = (single.apply(before) - centre * before) * (ratio * step)
    iterates, ratios = [before, now], [1.0, ratio]
    for _ in range(2, _DEGREE + 1):
        ratios.append(1.0 / (2.0 / ratio - ratios[-1]))
        image = (single.apply(now) - centre * now).mul_(2.0 * ratios[-1] * step)
        before, now = now, image.sub_(before, alpha=ratios[-1] * ratios[-2])
        iterates.append(now)
    return torch.stack(iterates[-_DIMENSION:], -1).double()
