"""Circuits of two neurons: all their fixed points are known, and which of them are stable."""

import math

import numpy as np
import pytest
import torch

from deq_organics import Circuit


def fixed_points_2d(wr: float, w: float, d: float, c: float) -> list[tuple[float, float]]:
    """All ``(y, a)`` of one neuron pair, by the roots of the paper's quartic in ``sqrt(a)``."""
    quartic = [
        wr**2,
        2 * (1 - wr) * wr,
        (1 - wr) ** 2 - w * d**2 - c * wr**2,
        -2 * (1 - wr) * wr * c,
        -((1 - wr) ** 2) * c,
    ]
    roots = [r.real for r in np.roots(quartic) if abs(r.imag) < 1e-9 and r.real > 1e-9]
    return [(d / (1 - wr + wr * s), s * s) for s in roots]


def is_stable_2d(wr: float, w: float, y: float, a: float) -> bool:
    s = math.sqrt(a)
    jacobian = [[-1 + (1 - s) * wr, -wr * y / (2 * s)], [2 * w * y * a, -1 + w * y * y]]
    return np.linalg.eigvals(jacobian).real.max() < 0


def circuits_2d(
    low: float, high: float, count: int = 400
) -> tuple[Circuit, list[tuple[float, ...]]]:
    rng = np.random.default_rng(0)
    wr, w, d = rng.uniform(low, high, count), rng.uniform(0.1, 2, count), rng.uniform(-2, 2, count)
    c = rng.uniform(0.01, 1, count)
    column = lambda v: torch.from_numpy(v).unsqueeze(-1)  # noqa: E731
    circuit = Circuit(column(d), column(c), column(wr)[..., None], column(w)[..., None])
    return circuit, list(zip(wr, w, d, c, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("range_of_wr", [(0.0, 1.0), (1.0, 3.0), (-3.0, 0.0)])
def test_two_dimensional_circuits_are_classified_exactly(range_of_wr: tuple[float, float]) -> None:
    """Theorems 5.1 and 5.2, and the exact count for the rest."""
    circuit, cases = circuits_2d(*range_of_wr)
    state = circuit.steady_state(tol=1e-10, on_failure="ignore")
    for index, (wr, w, d, c) in enumerate(cases):
        found = fixed_points_2d(wr, w, d, c)
        stable = [point for point in found if is_stable_2d(wr, w, *point)]
        count = 1
        if not 0 <= wr <= 1:
            scale = abs(wr - 1)
            total = (math.sqrt(w) * abs(d) / scale) ** (2 / 3) + (
                math.sqrt(c) * abs(wr) / scale
            ) ** (2 / 3)
            count = 3 if total < 1 else 1
        assert len(found) == count
        assert len(stable) == (1 if wr <= 1 and (wr >= 0 or count == 3) else len(stable))
        assert bool(state.converged[index]) == bool(stable)
        if stable:
            point = (float(state.y[index]), float(state.a[index]))
            assert any(point == pytest.approx(each, rel=1e-6) for each in stable)


@pytest.mark.slow
def test_theorem_5_1_sign() -> None:
    circuit, _ = circuits_2d(0.0, 1.0)
    state = circuit.steady_state(tol=1e-10)
    assert torch.equal(state.y.sign(), circuit.input_drive.sign())
