"""What is said of circuits without a steady state: only what was checked along their dynamics."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, random_parameters, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from deq_organics import Circuit, Status, SteadyState, SteadyStateError, SteadyStateWarning
from deq_organics.steady_state.methods.relaxation.cycles import verify_cycles
from deq_organics.steady_state.methods.relaxation.dynamics import follow, rest
from deq_organics.steady_state.methods.relaxation.rosenbrock import tolerances

# The dynamics diverge at t = 351; it was reported as an oscillation.
DIVERGING: dict[str, Any] = {
    "input_drive": vector(0.28, 0.26, 0.46, 0.48, 0.64),
    "inhibitory_drive": 0.01,
    "recurrent_weight": vector(
        (-0.32, 0.26, -1.04, -1.0, -0.44),
        (-2.28, 1.19, 1.36, -1.79, -0.5),
        (0.5, 0.69, 1.65, 0.31, 0.19),
        (-0.49, 1.38, 0.87, -0.51, -0.06),
        (2.43, 0.77, 0.83, 0.35, -0.1),
    ),
    "normalization_weight": vector(
        (0.88, 0.35, 0.54, 0.5, 0.13),
        (0.99, 0.28, 0.71, 0.4, 0.21),
        (0.84, 0.75, 0.03, 0.56, 0.53),
        (0.32, 0.27, 0.88, 0.62, 0.9),
        (0.42, 0.77, 0.7, 0.39, 0.78),
    ),
    "tau_y": 4.0,
    "tau_a": 8.0,
}


def rotation(gain: float, batch: int = 1) -> Circuit:
    """A rotation with some gain, which lets the circuit oscillate."""
    wr = 3.0 * vector((0.0, -1.0), (1.0, 0.0)) + gain * torch.eye(2, dtype=DOUBLE)
    drive = vector((0.05, 0.02)).expand(batch, 2)
    return Circuit(drive, 0.01, wr, torch.ones(2, 2, dtype=DOUBLE))


class Oracle:
    """One circuit's trajectory from rest by scipy, with equations of its own."""

    def __init__(self, circuit: Circuit, index: int, rectified: bool = False) -> None:
        parts = (circuit.input_drive, circuit.inhibitory_drive, circuit.tau_y, circuit.tau_a)
        shape = (*circuit.batch_shape, circuit.n)
        self.d, self.c, *self.tau = (part.expand(shape)[index].numpy() for part in parts)
        weights = (circuit.recurrent_weight, circuit.normalization_weight)
        self.wr, self.w = (weight.expand(*shape, shape[-1])[index].numpy() for weight in weights)
        self.rectified = rectified

    def field(self, _: float, x: np.ndarray) -> np.ndarray:
        y, a = np.split(x, 2)
        active, root = np.maximum(y, 0) if self.rectified else y, np.sqrt(np.maximum(a, 0))
        dy = self.d - y + (1 - root) * (self.wr @ active)
        da = self.c - a + self.w @ (active**2 * np.maximum(a, 0))
        return np.concatenate([dy / self.tau[0], da / self.tau[1]])

    def follow(self, time: float, bound: float = 1e9) -> Any:
        def diverges(_: float, x: np.ndarray) -> float:
            return bound - np.abs(x).max()

        diverges.terminal = True  # type: ignore[attr-defined]
        start = np.concatenate([np.zeros_like(self.c), self.c])
        return solve_ivp(
            self.field,
            (0, time),
            start,
            "LSODA",
            rtol=1e-9,
            atol=1e-12,
            events=diverges,
            dense_output=True,
        )

    def refutes(self, status: int, time: float, period: float) -> str | None:
        """What contradicts a status, as a sentence; None if nothing does."""
        if status == Status.DIVERGED:
            path = self.follow(1.05 * time)
            return None if path.status == 1 else "it does not diverge by then"
        if status == Status.CYCLE:
            path = self.follow(time + 30 * period)
            if path.status != 0:
                return "it diverges"
            phase = np.linspace(0, 1, 50) * period
            now, before = path.sol(path.t[-1] - phase), path.sol(path.t[-1] - period - phase)
            extent = np.ptp(now, axis=1).max()
            if extent < 1e-3 * np.abs(now).max():
                return "it settles"
            returns = np.abs(now - before).max() < 2e-2 * extent
            return None if returns else "it does not return"
        if status == Status.CONVERGED:
            path = self.follow(20 * time)
            speed = self.field(0, path.y[:, -1]) * np.concatenate(self.tau)
            still = path.status == 0 and np.abs(speed).max() < 1e-4 * np.abs(path.y[:, -1]).max()
            return None if still else "it does not settle"
        return None


@pytest.mark.slow
def test_a_divergence_is_no_oscillation() -> None:
    circuit = Circuit(**DIVERGING)
    state = circuit.steady_state(on_failure="ignore")
    assert state.status == Status.DIVERGED
    assert float(state.time) == pytest.approx(351.3, abs=0.1)
    assert state.period.isnan()
    assert torch.isfinite(state.y).all()
    assert str(state).endswith("1: the dynamics diverge (t = 351.3)")
    alone = Circuit(**{**DIVERGING, "input_drive": DIVERGING["input_drive"][None]})
    assert Oracle(alone, 0).refutes(Status.DIVERGED, float(state.time), 0.0) is None


@pytest.mark.slow
def test_a_cycle_is_reported_with_its_period() -> None:
    circuit = rotation(1.5)
    state = circuit.steady_state(on_failure="ignore")
    assert state.status == Status.CYCLE
    path = Oracle(circuit, 0).follow(400.0)
    late = np.linspace(300, 400, 200_001)
    y = path.sol(late)[0] - path.sol(late)[0].mean()
    up = late[1:][(y[:-1] < 0) & (y[1:] >= 0)]
    assert float(state.period) == pytest.approx(np.diff(up).mean(), rel=1e-3)
    with pytest.raises(SteadyStateError, match=r"1: the dynamics end on a stable cycle \(period 3"):
        circuit.steady_state(on_failure="error")
    with pytest.warns(SteadyStateWarning, match=r"2: .* cycle \(period 3.141\)"):
        rotation(1.5, batch=2).steady_state()


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.2, 0.8])
def test_a_spiral_is_no_cycle(gain: float) -> None:
    """A slow one returns very close to where it was, turn after turn."""
    state = rotation(gain).steady_state(start="rest", max_iter=400, on_failure="ignore")
    assert state.status in (Status.CONVERGED, Status.NOT_SETTLED, Status.CYCLE)
    refuted = Oracle(rotation(gain), 0).refutes(
        Status(int(state.status)), float(state.time), float(state.period)
    )
    assert refuted is None


@pytest.mark.slow
def test_what_is_no_cycle_is_not_verified_as_one() -> None:
    """A fixed point, a decaying spiral and a wrong period."""
    for circuit, found in ((rotation(-0.5), False), (rotation(1.5), True)):
        problem = circuit.flatten()
        end = follow(problem, rest(problem), 1e-9)
        state = torch.cat([end.y, end.a], -1)
        if found:
            # Anywhere on the cycle, later on.
            path = Oracle(circuit, 0).follow(300.0)
            state = torch.from_numpy(path.y[:, -1:].T.copy())
        one = torch.ones(1, dtype=DOUBLE)
        scale = tolerances(problem, state)
        for period in (3.1408, 2.0):
            verdict, refined, _ = verify_cycles(problem, state, period * one, scale, one)
            assert bool(verdict) == (found and period == 3.1408)
        if found:
            verdict, refined, _ = verify_cycles(problem, state, 2 * 3.1408 * one, scale, one)
            assert not verdict or abs(float(refined) - 3.1408) < 1e-2


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    singular_value=st.floats(1.0, 4.0),
    rectified=st.booleans(),
    log_tau=st.floats(-1.5, 1.5),
)
def test_no_status_is_refuted_by_another_integration(
    n: int, seed: int, singular_value: float, rectified: bool, log_tau: float
) -> None:
    arguments = random_parameters(
        (40,),
        n,
        recurrence="per-circuit",
        shared=False,
        seed=seed,
        singular_value=singular_value,
        rectified=rectified,
    )
    circuit = Circuit(**arguments, tau_y=10.0**log_tau)
    state = circuit.steady_state(start="rest", tol=1e-9, max_iter=1500, on_failure="ignore")
    failed = (~state.converged).nonzero().squeeze(-1).tolist()
    for index in (*failed[:4], *state.converged.nonzero().squeeze(-1).tolist()[:2]):
        status = Status(int(state.status[index]))
        refuted = Oracle(circuit, index, rectified).refutes(
            status, float(state.time[index]), float(state.period[index])
        )
        assert refuted is None, (index, status, refuted)


@pytest.mark.slow
def test_the_summary_counts_each_status(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((3,), 2)
    wr = torch.stack([rotation(1.5).recurrent_weight, *[0.3 * torch.eye(2).double()] * 2])
    drive = torch.stack([vector(0.05, 0.02), *arguments["input_drive"][:2]])
    circuit = Circuit(drive, 0.01, wr, torch.ones(2, 2, dtype=DOUBLE))
    lines = str(circuit.steady_state(on_failure="ignore")).splitlines()
    assert lines == [
        "SteadyState of 3 circuits, n = 2: 2 converged",
        "  1: the dynamics end on a stable cycle (period 3.141)",
    ]


def test_a_hand_built_state_says_nothing_of_the_dynamics(circuit: Callable[..., Circuit]) -> None:
    state = circuit((3,), 2).steady_state()
    built = SteadyState(
        state.y,
        state.a,
        state.rates,
        state.converged,
        state.residual,
        state.iterations,
        state.status,
    )
    assert built.reached.tolist() == [-1, -1, -1]
    assert built.period.isnan().all()
    assert "converged" in str(built)
