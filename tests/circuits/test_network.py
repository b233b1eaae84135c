"""Networks: the whole is solved and judged, not its areas."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deq_organics import (
    Circuit,
    Connection,
    DynamicalCircuit,
    FeedbackArea,
    Network,
    WilsonCowan,
    check_stability,
    draw_circuits,
    find_steady_state,
)
from deq_organics.circuits.newton import Plain
from deq_organics.circuits.system import System

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_equals_one_circuit_with_block_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (draw_circuits(5, 2, generator=generator) for _ in range(2))
    back = 0.3 * uniform(2, 2)
    net = Network(
        {"V1": one, "V2": two},
        [Connection("V2", "V1", "feedback", back, signal="potential")],
    )
    assert one.recurrent_weight is not None
    assert two.recurrent_weight is not None
    none = torch.zeros(5, 2, 2, dtype=DOUBLE)
    upper = torch.cat([one.recurrent_weight, back.expand(5, 2, 2)], -1)
    recurrent = torch.cat([upper, torch.cat([none, two.recurrent_weight], -1)], -2)
    w = [one.normalization_weight, two.normalization_weight]
    pool = torch.cat([torch.cat([w[0], none], -1), torch.cat([none, w[1]], -1)], -2)
    whole = Circuit(
        torch.cat([one.input_drive, two.input_drive], -1),
        torch.cat([one.inhibitory_drive, two.inhibitory_drive], -1),
        recurrent,
        pool,
    )
    found, expected = find_steady_state(net, tol=1e-12), whole.steady_state(tol=1e-13)
    joined = torch.cat([found["V1.y"], found["V2.y"], found["V1.a"], found["V2.a"]], -1)
    torch.testing.assert_close(
        joined, torch.cat([expected.y, expected.a], -1), rtol=1e-9, atol=1e-9
    )
    report, other = check_stability(net, found), check_stability(whole, expected)
    torch.testing.assert_close(report.margin, other.margin, rtol=1e-7, atol=1e-9)
    assert bool((report.stable == other.stable).all())


@pytest.mark.slow
def test_feedback_leaves_normalization_exact() -> None:
    z, w = 0.3 + uniform(4, 3), 0.5 * uniform(3, 3, seed=1)
    none = torch.zeros(4, 3, dtype=DOUBLE)
    areas = {
        "V1": FeedbackArea(z, None, w, semisaturation=0.2, feedback_strength=0.02, epsilon=1e-20),
        "V2": FeedbackArea(none, None, w, semisaturation=0.2, feedback_strength=0.0),
    }
    links = [
        Connection("V1", "V2", "drive", uniform(3, 3, seed=2) / 3.0),
        Connection("V2", "V1", "feedback", uniform(3, 3, seed=3) / 3.0, signal="rectified"),
    ]
    found = find_steady_state(Network(areas, links), tol=1e-12, verify_stability=False)
    assert bool(found.converged.all())
    u = (0.2 * 0.5) ** 2 + (0.5 * z).square() @ w.T
    torch.testing.assert_close(found["V1.y"], 0.5 * z / u.sqrt(), rtol=1e-9, atol=0)
    assert float(found["V1.p"].min()) > 0


@pytest.mark.slow
def test_a_whole_may_be_unstable_where_each_area_is_stable() -> None:
    z, w = torch.ones(1, 2, dtype=DOUBLE), 0.5 * torch.ones(2, 2, dtype=DOUBLE)
    areas = {
        name: FeedbackArea(own, None, w, semisaturation=0.2, alpha=0.0, feedback_strength=g)
        for name, own, g in (("V1", z, 2.0), ("V2", 0.1 * z, 0.0))
    }
    eye = torch.eye(2, dtype=DOUBLE)
    links = [
        Connection("V1", "V2", "drive", 0.5 * eye),
        Connection("V2", "V1", "feedback", eye, signal="rectified"),
    ]
    assert bool(check_stability(areas["V2"]).stable)
    whole = Network(areas, links)
    found = find_steady_state(whole, verify_stability=False)
    report = check_stability(whole, found)
    largest = np.linalg.eigvals(System(whole).jacobian(found.state).numpy()).real.max()
    assert bool(report.stable) == bool(largest < 0)
    assert float(report.margin) == pytest.approx(-largest, rel=1e-9)
    assert largest > 0


@pytest.mark.slow
def test_verdicts_equal_dense_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(3)
    areas = {f"V{i}": draw_circuits(60, 2, generator=generator) for i in (1, 2, 3)}
    up, down = torch.rand(2, 60, 2, 2, generator=generator, dtype=DOUBLE)
    links = [
        Connection("V1", "V2", "drive", up),
        Connection("V2", "V3", "gain", up),
        Connection("V3", "V1", "feedback", down, signal="rectified"),
        Connection("V3", "V2", "inhibitory", down, tau=3.0),
    ]
    whole = Network(areas, links)
    system = System(whole)
    plain = Plain(system, 1e-9)
    state = plain.polish(plain.rest, 40, torch.ones(plain.size, dtype=torch.bool)).state
    report = check_stability(whole, system.split(state))
    rows = (~report.undecided & ~report.rejected).nonzero().squeeze(-1)
    assert rows.numel() > 25
    spectra = np.linalg.eigvals(system.jacobian(state)[rows].numpy())
    stable = torch.from_numpy(spectra.real.max(-1) < 0)
    assert bool((report.stable[rows] == stable).all())


@pytest.mark.slow
def test_filters_change_no_fixed_point_and_networks_nest() -> None:
    generator = torch.Generator().manual_seed(0)
    areas = {name: draw_circuits(3, 2, generator=generator) for name in ("A", "B")}
    weight = 0.3 * uniform(2, 2)
    links = [Connection("A", "B", weight=weight), Connection("B", "A", "inhibitory", weight)]
    slow = [links[0], Connection("B", "A", "inhibitory", weight, tau=5.0)]
    plain, filtered = Network(areas, links), Network(areas, slow)
    found, other = find_steady_state(plain, tol=1e-12), find_steady_state(filtered, tol=1e-12)
    torch.testing.assert_close(other.state[..., :8], found.state, rtol=1e-9, atol=1e-9)
    assert filtered.parts == ("A.y", "A.a", "B.y", "B.a", "B->A.inhibitory")
    nested = Network(
        {"inner": Network({"A": areas["A"]}), "B": areas["B"]},
        [
            Connection("inner.A", "B", weight=weight),
            Connection("B", "inner.A", "inhibitory", weight),
        ],
    )
    assert nested.parts == ("inner.A.y", "inner.A.a", "B.y", "B.a")
    torch.testing.assert_close(find_steady_state(nested, tol=1e-12).state, found.state)


@pytest.mark.slow
def test_gradients_cross_areas() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (draw_circuits(2, 2, generator=generator) for _ in range(2))
    weight = (0.3 * uniform(2, 2)).requires_grad_()

    def rates(up: Tensor) -> Tensor:
        net = Network({"A": one, "B": two}, [Connection("A", "B", weight=up)])
        return find_steady_state(net, tol=1e-12)["B.y"]

    assert torch.autograd.gradcheck(rates, [weight], fast_mode=True)


def test_bad_connections() -> None:
    one = draw_circuits(2, 2, generator=torch.Generator().manual_seed(0))
    other = WilsonCowan(
        *(uniform(k) for k in (3, 1)), *(uniform(*s) for s in ((3, 3), (3, 1), (1, 3), (1, 1)))
    )
    areas: dict[str, DynamicalCircuit] = {"A": one, "W": other}
    for link, match in (
        (Connection("A", "C"), "target: got 'C'"),
        (Connection("A", "W", "gain"), "term: got 'gain'"),
        (Connection("A", "W"), "weight: got None for 2 cells to 3"),
        (Connection("A", "W", weight=uniform(2, 2)), r"weight: got shape \(2, 2\)"),
        (Connection("W", "A", weight=uniform(2, 3), signal="potential", part="y"), "part: got"),
        (Connection("W", "A", weight=uniform(2, 3), tau=-1.0), "tau: got"),
    ):
        with pytest.raises(ValueError, match=match):
            Network(areas, [link])
    with pytest.raises(ValueError, match="areas: got the name"):
        Network({"A.B": one})
    with pytest.raises(ValueError, match="term: got"):
        Connection("A", "B", "food")
