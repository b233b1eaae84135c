"""All fixed points: against the complete classification of circuits of two neurons."""

from typing import Any

import pytest
import torch
from _circuits import DOUBLE, vector

from deq_organics import Circuit, draw_circuits, fixed_points, fixed_points_2d


def two_neurons(count: int, seed: int) -> Circuit:
    """With recurrent weights of both signs, so that there are none to three fixed points."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=DOUBLE)

    wr = 6.0 * uniform(1, 1) - 2.0
    return Circuit(
        0.6 * uniform(1) - 0.3, 0.01 + 0.3 * uniform(1), wr, 0.1 + uniform(1, 1), 1.0, uniform(1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_all_of_two_neurons(seed: int) -> None:
    circuit = two_neurons(12, seed)
    found, expected = fixed_points(circuit, 24, seed=seed), fixed_points_2d(circuit)
    assert found.count.tolist() == expected.count.tolist()
    for row in range(12):
        order, own = found.y[row, :, 0].argsort(), expected.y[row].argsort()
        count = int(found.count[row])
        y, known = found.y[row, order, 0][:count], expected.y[row, own][:count]
        torch.testing.assert_close(y, known, rtol=1e-8, atol=1e-10)
        assert (
            found.stable[row, order][:count].tolist() == expected.stable[row, own][:count].tolist()
        )
    total = found.share.sum(-1) + found.cycles + found.diverging + found.undecided_starts
    torch.testing.assert_close(total, torch.ones_like(total))
    # Only stable ones have basins.
    assert (found.share[~found.stable] == 0).all()


@pytest.mark.slow
def test_shares_are_those_of_the_starts() -> None:
    """By the sign of the start, which decides in a symmetric circuit."""
    circuit = Circuit(vector(0.0), 0.05, vector((3.0,)), vector((0.7,)))
    y = vector(-2.0, -1.0, -0.5, 1.0, 0.3, 0.2, 0.4, 2.0).unsqueeze(-1)
    found = fixed_points(circuit, (y, torch.full_like(y, 0.05)))
    assert found.count == 3
    assert found.share.tolist() == pytest.approx([0.625, 0.375, 0.0])
    assert found.y[0, 0] > 0 > found.y[1, 0]
    assert (found.residual < 1e-12).all()
    assert "62.5 % of the starts" in str(found)


@pytest.mark.slow
def test_every_one_of_a_batch_is_a_fixed_point() -> None:
    circuit = draw_circuits(3, 4, singular_value=3.0, generator=torch.Generator().manual_seed(2))
    found = fixed_points(circuit, 20)
    for place in range(found.y.shape[1]):
        y, a = found.y[:, place], found.a[:, place]
        here = ~y[:, 0].isnan()
        if here.any():
            speed = torch.cat(circuit.vector_field(y.nan_to_num(), a.nan_to_num(nan=1.0)), -1)
            assert (speed[here].abs() < 1e-9).all()
    again = fixed_points(circuit, 20)
    assert torch.equal(found.share, again.share)


@pytest.mark.parametrize(("starts", "error", "message"), [
    (0, ValueError, r"starts: got 0"),
    (1.5, TypeError, r"starts: got 1\.5"),
    ((vector((0.0,)),), TypeError, r"starts: got a tuple of 1"),
    ((vector(0.0), vector(1.0)), ValueError, r"starts\[0\]: got shape \(1,\)"),
    ((vector((0.0,)), vector((0.0,))), ValueError, r"starts\[1\]: got a smallest value of 0"),
])  # fmt: skip
def test_bad_starts(starts: Any, error: type[Exception], message: str) -> None:
    circuit = Circuit(vector(0.1), 0.05, vector((3.0,)), vector((0.7,)))
    with pytest.raises(error, match=message):
        fixed_points(circuit, starts)
