"""Theorems 5.1 and 5.2 and what completes them, over 10,000 random circuits each."""

from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from _draws import DOUBLE, Draw
from torch import Tensor

from deq_organics import Circuit, FixedPoints2D, critical_drive_2d, fixed_points_2d

COUNT = 10_000


def random_circuits(
    seed: int, low: float, high: float, *, exponent: float = 2.0, rectified: bool = False
) -> Circuit:
    draw = Draw(seed)
    sign = torch.where(draw.uniform(COUNT, 1) < 0.5, -1.0, 1.0)
    return Circuit(
        sign * draw.decades(4, COUNT, 1),
        draw.decades(4, COUNT, 1),
        low + (high - low) * draw.uniform(COUNT, 1, 1),
        draw.decades(4, COUNT, 1, 1),
        draw.decades(4, COUNT, 1),
        draw.decades(4, COUNT, 1),
        exponent,
        rectified,
    )


def one_each(circuit: Circuit, count: int = 3) -> Circuit:
    """The circuits three times over, one for each of their fixed points."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(1)

    return Circuit(
        repeat(circuit.input_drive).expand(-1, count, -1),
        repeat(circuit.inhibitory_drive),
        repeat(circuit.recurrent_weight),
        repeat(circuit.normalization_weight),
        repeat(circuit.tau_y),
        repeat(circuit.tau_a),
        circuit.exponent,
        circuit.rectified,
    )


def parameters(circuit: Circuit) -> tuple[Tensor, ...]:
    """d, c, wr and w as vectors."""
    return (
        circuit.input_drive[:, 0],
        circuit.inhibitory_drive[:, 0],
        circuit.recurrent_weight[:, 0, 0],
        circuit.normalization_weight[:, 0, 0],
    )


def quartic(circuit: Circuit) -> Tensor:
    """Coefficients of the quartic in s = sqrt(a), EQUATIONS, highest power first, ``(B, 5)``."""
    d, c, wr, w = parameters(circuit)
    e = 1 - wr
    return torch.stack(
        [wr**2, 2 * e * wr, e**2 - w * d**2 - c * wr**2, -2 * e * wr * c, -(e**2) * c], -1
    )


def count_by_quartic(circuit: Circuit) -> Tensor:
    """Positive real roots of the quartic; by 60 digits where double precision cannot tell."""
    coefficients = quartic(circuit)
    companion = torch.zeros(len(coefficients), 4, 4, dtype=DOUBLE)
    companion[:, 0] = -coefficients[:, 1:] / coefficients[:, :1]
    companion[:, 1:, :3] = torch.eye(3, dtype=DOUBLE)
    roots = torch.linalg.eigvals(companion)
    angle = roots.imag.abs() / roots.abs()
    count = ((roots.real > 0) & (angle < 1e-9)).sum(-1)
    doubtful = ((angle > 1e-12) & (angle < 1e-5)).any(-1)
    gap = (roots.unsqueeze(-1) - roots.unsqueeze(-2)).abs() + 1e300 * torch.eye(4)
    doubtful |= (gap.amin(-1) / roots.abs()).amin(-1) < 1e-5
    with mpmath.workdps(60):
        for row in doubtful.nonzero().flatten().tolist():
            d, c, wr, w = (mpmath.mpf(float(value[row])) for value in parameters(circuit))
            e = 1 - wr
            exact = mpmath.polyroots(
                [wr**2, 2 * e * wr, e**2 - w * d**2 - c * wr**2, -2 * e * wr * c, -(e**2) * c],
                maxsteps=500,
                extraprec=300,
            )
            tiny = mpmath.mpf(10) ** -25
            count[row] = sum(root.real > 0 and abs(root.imag) < tiny * abs(root) for root in exact)
    assert int(doubtful.sum()) < COUNT // 20
    return count


def check_fixed_points(circuit: Circuit, points: FixedPoints2D) -> None:
    """Each is one, to 1e-12, and called stable as the eigenvalues of its Jacobian are."""
    exists = ~points.y.isnan()
    assert torch.equal(exists, ~points.a.isnan())
    assert torch.equal(points.count, exists.sum(-1))
    y = torch.where(exists, points.y, 1.0).unsqueeze(-1)
    a = torch.where(exists, points.a, 1.0).unsqueeze(-1)
    each = one_each(circuit)
    residual = each.flatten().relative_residual(y.reshape(-1, 1), a.reshape(-1, 1))
    assert (residual.reshape(-1, 3)[exists] < 1e-12).all()
    leading = torch.linalg.eigvals(each.jacobian(y, a)).real.amax(-1)
    assert torch.equal(points.stable[exists], leading[exists] < 0)
    assert not points.stable[~exists].any()
    assert (points.a[exists] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [2.0, 1.5, 3.0])
def test_theorem_5_1(exponent: float) -> None:
    circuit = random_circuits(1, 1e-3, 1.0, exponent=exponent)
    points = fixed_points_2d(circuit)
    check_fixed_points(circuit, points)
    assert (points.count == 1).all()
    assert points.stable[:, 0].all()
    assert torch.equal(points.y[:, 0].sign(), circuit.input_drive[:, 0].sign())


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [2.0, 1.5, 3.0])
def test_theorem_5_2(exponent: float) -> None:
    circuit = random_circuits(2, 1.0, 5.0, exponent=exponent)
    points = fixed_points_2d(circuit)
    check_fixed_points(circuit, points)
    sign = circuit.input_drive[:, 0].sign()
    assert points.stable[:, 0].all()
    assert torch.equal(points.y[:, 0].sign(), sign)
    _, c, wr, _ = parameters(circuit)
    assert (points.count[c ** (1 / exponent) > 1 - 1 / wr] == 1).all()
    three = points.count == 3
    assert torch.equal(~three, points.count == 1)
    assert (points.y[three, 1:].sign() == -sign[three].unsqueeze(-1)).all()
    assert not points.stable[:, 1].any()
    # "Whose stability cannot be guaranteed": both cases occur.
    assert points.stable[three, 2].any()
    assert not points.stable[three, 2].all()


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [2.0, 1.5, 3.0])
def test_negative_recurrence_is_stable_just_below_the_critical_drive(exponent: float) -> None:
    circuit = random_circuits(3, -4.0, 0.0, exponent=exponent)
    points = fixed_points_2d(circuit)
    check_fixed_points(circuit, points)
    below = circuit.input_drive[:, 0].abs() < critical_drive_2d(circuit)
    assert torch.equal(points.count, torch.where(below, 3, 1))
    assert torch.equal(points.stable.sum(-1), below.long())
    assert torch.equal(points.stable[:, 0], below)
    assert 1_000 < int(below.sum()) < 9_000


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "low", "high"), [(4, 1e-3, 1.0), (5, 1.0, 5.0), (6, -4.0, 0.0)])
def test_counts_are_those_of_the_quartic(seed: int, low: float, high: float) -> None:
    circuit = random_circuits(seed, low, high)
    points = fixed_points_2d(circuit)
    assert torch.equal(points.count, count_by_quartic(circuit))
    d, c, wr, w = parameters(circuit)
    root = c.sqrt()
    exact = ((w.sqrt() * d.abs() / (wr - 1).abs()) ** (2 / 3)) + (
        (root * wr.abs() / (wr - 1).abs()) ** (2 / 3)
    ) < 1
    expected = torch.where(exact & ((wr > 1) | (wr < 0)), 3, 1)
    assert torch.equal(points.count, expected)


def test_without_recurrence_strong_drives_have_no_fixed_point() -> None:
    """Theorem 5.1 says 0 <= wr; at wr = 0 it needs w d^2 < 1: a' = c - a (1 - w d^2)."""
    circuit = random_circuits(7, 0.0, 0.0)
    points = fixed_points_2d(circuit)
    check_fixed_points(circuit, points)
    d, c, _, w = parameters(circuit)
    has = w * d**2 < 1
    assert torch.equal(points.count, has.long())
    assert torch.equal(points.stable[:, 0], has)
    torch.testing.assert_close(points.y[has, 0], d[has])
    torch.testing.assert_close(points.a[has, 0], (c / (1 - w * d**2))[has], rtol=1e-6, atol=0.0)
    assert 1_000 < int(has.sum()) < 9_000


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [2.0, 1.5, 3.0])
@pytest.mark.parametrize(("low", "high"), [(1e-3, 1.0), (1.0, 5.0), (-4.0, 0.0)])
def test_rectified_model(exponent: float, low: float, high: float) -> None:
    """Those of the main model with y > 0, and the silent one where d <= 0."""
    circuit = random_circuits(8, low, high, exponent=exponent, rectified=True)
    points = fixed_points_2d(circuit)
    check_fixed_points(circuit, points)
    main = fixed_points_2d(random_circuits(8, low, high, exponent=exponent))
    d, c, _, _ = parameters(circuit)
    expected = (main.y > 0).sum(-1) + (d <= 0)
    assert torch.equal(points.count, expected)
    silent = points.y < 0
    assert torch.equal(silent.any(-1), d < 0)
    assert points.stable[silent].all()
    torch.testing.assert_close(points.a[silent], c[d < 0])
    if low > 0:
        driven = d > 0
        assert (points.count[driven] == 1).all()
        assert points.stable[driven].any(-1).all()


def test_published_counterexample(counterexample: Callable[..., Circuit]) -> None:
    """wr = -1, d = w = 1, c = 1/2: one fixed point, and it is a saddle."""
    points = fixed_points_2d(counterexample())
    assert points.count.tolist() == [1]
    assert not points.stable.any()
    assert float(critical_drive_2d(counterexample())) < 1


@pytest.mark.slow
def test_weak_drives_are_stable_up_to_a_sharp_bound() -> None:
    """wr in [-1, 1], c <= 1, w d^2 <= k c: always stable up to k = (4^(1/3) - 1)^3, not beyond."""
    draw = Draw(9)
    bound = (4 ** (1 / 3) - 1) ** 3
    c, w = draw.uniform(COUNT, 1), draw.decades(4, COUNT, 1, 1)
    wr = 2 * draw.uniform(COUNT, 1, 1) - 1
    # The worst case is among them.
    c[0], wr[0] = 1.0, -1.0
    for factor, stable in ((0.999, True), (1.001, False)):
        d = (factor * bound * c / w[..., 0]).sqrt()
        points = fixed_points_2d(Circuit(d, c, wr, w))
        assert bool(points.stable.any(-1).all()) == stable
        assert bool(points.stable[0].any()) == stable


@pytest.mark.parametrize("rectified", [False, True])
def test_no_drive(rectified: bool) -> None:
    """d = 0: rest, and beside it the symmetric pair of an expansive circuit."""
    zero = torch.zeros(1, dtype=DOUBLE)
    wr, w = torch.tensor([[3.0]], dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    points = fixed_points_2d(Circuit(zero, 0.04, wr, w, rectified=rectified))
    values = points.y[~points.y.isnan()]
    assert 0.0 in values.tolist()
    assert points.count.item() == (2 if rectified else 3)
    # Rest is unstable: gain (1 - 0.2) * 3 > 1.
    assert points.stable.sum().item() == (1 if rectified else 2)


def test_one_circuit_and_shapes() -> None:
    one = torch.ones(1, 1)
    points = fixed_points_2d(Circuit(torch.ones(1), 1.0, None, one))
    assert points.y.shape == points.stable.shape == (3,)
    assert points.count.shape == ()
    assert points.y.dtype == torch.float32
    assert critical_drive_2d(Circuit(torch.ones(4, 5, 1), 1.0, None, one)).shape == (4, 5)


@pytest.mark.parametrize("function", [fixed_points_2d, critical_drive_2d])
@pytest.mark.parametrize(
    ("n", "weight", "message"),
    [
        (2, 1.0, "circuit: got n = 2, expected n = 1"),
        (1, 0.0, "normalization_weight: got a smallest value of 0, expected positive values"),
    ],
)
def test_refusals(function: Callable[..., Any], n: int, weight: float, message: str) -> None:
    circuit = Circuit(torch.ones(n), 1.0, None, weight * torch.ones(n, n))
    with pytest.raises(ValueError, match=message):
        function(circuit)
