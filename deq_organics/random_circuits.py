"""Random circuits by the distribution of the paper's experiments (Conjecture 5.3)."""

import torch
from torch import Tensor

from .checks import as_float_tensor, check_finite, check_number, check_positive_int
from .circuit import Circuit

__all__ = ["draw_circuits", "scale_to_singular_value"]


def draw_circuits(
    count: int,
    n: int,
    *,
    singular_value: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Circuit:
    """Draw circuits as the paper does, each with weights of its own and time constants of 1.

    The entries of ``b0``, ``b``, ``sigma`` and ``W`` are uniform in (0, 1). ``Wr`` is Gaussian and
    scaled to its largest singular value, ``z`` has a norm of 1 and a random direction. The numbers
    are drawn in double precision on the CPU: with equal seeds, circuits of every ``dtype`` are the
    same but for rounding.

    Args:
        count: How many circuits.
        n: Neurons of each type.
        singular_value: The largest one of each ``Wr``. The paper has 1, 2 and 3. It
            conjectures that with 1 every circuit has a stable fixed point, which is false.
        generator: Decides the numbers, on the CPU; torch's default one where it is None.
        dtype: Of the circuits' tensors, ``torch.float32`` or ``torch.float64``.

    Returns:
        A circuit with ``batch_shape == (count,)``.

    Raises:
        TypeError: An argument has another type.
        ValueError: ``count`` or ``n`` is below 1, ``singular_value`` is negative or not finite, or
            ``dtype`` is another one: half precision rounds small ``(b0 sigma)^2`` to 0.
    """
    count, n = check_positive_int("count", count), check_positive_int("n", n)
    largest = check_number("singular_value", singular_value, low=0.0)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: got {dtype!r}, expected torch.float32 or torch.float64")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    b0, b, sigma = uniform(n), uniform(n), uniform(n)
    w, wr, z = uniform(n, n), gaussian(n, n), gaussian(n)
    wr = scale_to_singular_value(wr, largest)
    z = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return Circuit(b * z, (b0 * sigma).square(), wr, w).to(dtype)


def scale_to_singular_value(weight: Tensor, singular_value: float = 1.0) -> Tensor:
    """Scale matrices so that the largest singular value of each is the one that is given.

    Args:
        weight: Matrices ``(..., n, m)``, none of them 0.
        singular_value: The largest one of each result.

    Returns:
        The scaled matrices ``(..., n, m)``.

    Raises:
        TypeError: ``weight`` is no floating-point tensor.
        ValueError: ``weight`` has fewer than two dimensions or holds a matrix that no factor scales
            (of zeros, or not finite), or ``singular_value`` is negative or not finite.
    """
    weight = as_float_tensor("weight", weight)
    check_finite("weight", weight)
    if weight.ndim < 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (..., n, m)")
    largest = check_number("singular_value", singular_value, low=0.0)
    found = torch.linalg.matrix_norm(weight, 2, keepdim=True)
    if not ((found > 0) & found.isfinite()).all():
        raise ValueError("weight: got a matrix of zeros, expected a largest singular value above 0")
    return largest * weight / found
