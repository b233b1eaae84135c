"""Random circuits by the distribution of the paper's experiments."""

from typing import Any

import torch
from torch import Tensor

from deq_organics import scale_to_singular_value

DOUBLE = torch.float64
MODELS = [(m, rectified) for m in (1.5, 2.0, 3.0) for rectified in (False, True)]
RECURRENCES = ("identity", "shared", "per-circuit")


def vector(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


# Normalization weights of two neurons.
POOL = vector((1.0, 0.3), (0.2, 1.0))


def random_parameters(
    batch: tuple[int, ...] = (4,),
    n: int = 3,
    *,
    recurrence: str = "shared",
    exponent: float = 2.0,
    rectified: bool = False,
    shared: bool = True,
    singular_value: float = 1.0,
    dtype: torch.dtype = DOUBLE,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `Circuit`: b0, b, sigma and W uniform in (0, 1), |z| = 1, Wr Gaussian."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=DOUBLE)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    z = gaussian(*batch, n)
    z = z / z.norm(dim=-1, keepdim=True)
    if rectified:
        z = z.abs()
    lead = () if shared else batch
    wr = None
    if recurrence != "identity":
        wr = gaussian(*(batch if recurrence == "per-circuit" else lead), n, n)
        wr = scale_to_singular_value(wr, singular_value)
    tensors = {
        "input_drive": uniform(*batch, n) * z,
        "inhibitory_drive": (uniform(*lead, n) * uniform(*lead, n)).pow(exponent),
        "recurrent_weight": wr,
        "normalization_weight": uniform(*lead, n, n),
    }
    cast = {name: None if value is None else value.to(dtype) for name, value in tensors.items()}
    return {**cast, "exponent": exponent, "rectified": rectified}
