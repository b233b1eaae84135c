"""Random circuits are of the paper's distribution, and of their seed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deq_organics import draw_circuits, scale_to_singular_value

DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_distribution_is_the_papers() -> None:
    """W, b |z| and (b0 sigma)^2 are compared with the distributions that the paper names."""
    circuit = draw_circuits(4000, 3, generator=seeded())
    w = circuit.normalization_weight.flatten().sort().values
    assert (w - (torch.arange(len(w)) + 0.5) / len(w)).abs().max() < 2 / len(w) ** 0.5
    # P(b0 sigma < x) = x (1 - log x).
    for x in (0.05, 0.2, 0.6):
        share = (circuit.inhibitory_drive.sqrt() < x).double().mean()
        assert float(share) == pytest.approx(x * (1 - math.log(x)), abs=0.02)
    # b is uniform and independent of z, whose squares have a mean of 1/n.
    drive = circuit.input_drive
    assert drive.abs().max() < 1
    assert float(drive.square().mean()) == pytest.approx(1 / 9, abs=5e-3)
    assert float(drive.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("n", "largest"), [(1, 1.0), (2, 3.0), (7, 0.5), (40, 2.0), (3, 0.0)])
def test_the_largest_singular_value_is_what_is_asked_for(n: int, largest: float) -> None:
    circuit = draw_circuits(20, n, singular_value=largest, generator=seeded(n))
    found = np.linalg.svd(circuit.recurrent_weight.numpy(), compute_uv=False)[:, 0]
    np.testing.assert_allclose(found, largest, rtol=1e-12)
    assert circuit.batch_shape == (20,)
    assert circuit.n == n
    assert (circuit.tau_y == 1).all()
    assert (circuit.tau_a == 1).all()


def test_the_seed_decides_the_circuits_in_both_precisions() -> None:
    one, same, other = (draw_circuits(5, 4, generator=seeded(s)) for s in (1, 1, 2))
    single = draw_circuits(5, 4, generator=seeded(1), dtype=torch.float32)
    for name in ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight"):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(getattr(one, name).float(), getattr(single, name))


def test_without_a_generator_torchs_default_one_decides() -> None:
    drives = []
    for _ in range(2):
        torch.manual_seed(3)
        drives.append(draw_circuits(2, 2).input_drive)
    assert torch.equal(*drives)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 4, 4), (0, 3, 3)])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_scaling_keeps_directions(shape: tuple[int, ...], size: float) -> None:
    weight = size * torch.randn(*shape, generator=seeded(), dtype=DOUBLE)
    scaled = scale_to_singular_value(weight.mT.contiguous().mT, 1.5)
    for before, after in zip(weight.reshape(-1, *shape[-2:]), scaled, strict=False):
        if scaled.ndim == 3:
            factor = np.linalg.svd(before.numpy(), compute_uv=False)[0]
            torch.testing.assert_close(after, before * (1.5 / factor), rtol=1e-12, atol=0)
    if scaled.ndim == 2:
        assert np.linalg.svd(scaled.numpy(), compute_uv=False)[0] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_circuits(0, 3), ValueError, "count: got 0, expected an int of at least 1"),
        (lambda: draw_circuits(3, 2.0), TypeError, "n: got 2.0"),  # type: ignore[arg-type]
        (lambda: draw_circuits(3, 2, singular_value=-1), ValueError, "singular_value: got -1"),
        (lambda: draw_circuits(3, 2, singular_value=math.nan), ValueError, "singular_value: got"),
        (lambda: draw_circuits(3, 2, dtype=torch.float16), ValueError, "dtype: got torch.float16"),
        (lambda: draw_circuits(3, 2, dtype=torch.int64), ValueError, "dtype: got torch.int64"),
        (lambda: scale_to_singular_value([[1.0]]), TypeError, "weight: got list"),  # type: ignore[arg-type]
        (lambda: scale_to_singular_value(torch.ones(3)), ValueError, r"weight: got shape \(3,\)"),
        (lambda: scale_to_singular_value(torch.zeros(2, 2)), ValueError, "weight: got a matrix of"),
        (lambda: scale_to_singular_value(torch.full((2, 2), math.inf)), ValueError, "weight: got"),
    ],
)
def test_bad_arguments_are_named(
    call: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
