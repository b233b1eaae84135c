"""Which circuits are solved, which are reported, and that neither ever looks like the other."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _circuits import DOUBLE, MODELS, random_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from deq_organics import (
    Circuit,
    Status,
    SteadyState,
    SteadyStateError,
    SteadyStateWarning,
    check_stability,
)


def relative_residual(circuit: Circuit, state: SteadyState) -> Tensor:
    """The larger of both equations' residuals, from the vector field alone."""
    dy, da = circuit.vector_field(state.y, state.a)
    dy, da = dy * circuit.tau_y, da * circuit.tau_a
    scale = torch.maximum(state.y.norm(dim=-1), circuit.input_drive.norm(dim=-1))
    return torch.maximum(
        dy.norm(dim=-1) / scale.clamp_min(1e-300), da.norm(dim=-1) / state.a.norm(dim=-1)
    )


def largest_real_part(circuit: Circuit, state: SteadyState) -> Tensor:
    jacobian = circuit.jacobian(state.y, state.a).detach().numpy()
    return torch.from_numpy(np.linalg.eigvals(jacobian).real.max(-1))


def settles(circuit: Circuit, index: int, seconds: float = 2000.0) -> bool:
    """Whether an independent stiff solver sees the trajectory from rest come to a stop."""
    n = circuit.n
    d, c, wr, w = (
        None if t is None else t[index]
        for t in (
            circuit.input_drive,
            circuit.inhibitory_drive,
            circuit.recurrent_weight,
            circuit.normalization_weight,
        )
    )
    one = Circuit(d, c, wr, w, exponent=circuit.exponent, rectified=circuit.rectified)

    def flow(_: float, x: np.ndarray) -> np.ndarray:
        dy, da = one.vector_field(torch.from_numpy(x[:n]), torch.from_numpy(x[n:]))
        return torch.cat([dy, da]).numpy()

    def diverges(_: float, x: np.ndarray) -> float:
        return 1e8 - np.abs(x).max()

    diverges.terminal = True  # type: ignore[attr-defined]
    start = np.concatenate([np.zeros(n), one.inhibitory_drive.numpy()])
    path = solve_ivp(flow, (0, seconds), start, "LSODA", rtol=1e-8, atol=1e-10, events=diverges)
    last = path.y[:, -1]
    return path.status == 0 and np.abs(flow(0, last)).max() < 1e-6 * max(1, np.abs(last).max())


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_every_random_circuit_is_solved_or_reported(
    circuit: Callable[..., Circuit], n: int
) -> None:
    batch = circuit((1200,), n, recurrence="per-circuit", shared=False)
    state = batch.steady_state(tol=1e-10, on_failure="ignore")
    solved = state.converged
    assert (relative_residual(batch, state)[solved] <= 1e-10).all()
    assert (state.residual[solved] <= 1e-10).all()
    assert (largest_real_part(batch, state)[solved] < 0).all()
    assert (state.a > 0).all()
    assert torch.equal(solved, state.status == Status.CONVERGED)
    reported = (~solved).nonzero().squeeze(-1).tolist()
    assert len(reported) < 20
    for index in reported[:3]:
        assert not settles(batch, index)


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_other_models_are_solved_or_reported(
    circuit: Callable[..., Circuit], exponent: float, rectified: bool
) -> None:
    batch = circuit(
        (300,), 4, recurrence="per-circuit", shared=False, exponent=exponent, rectified=rectified
    )
    state = batch.steady_state(tol=1e-10, on_failure="ignore")
    solved = state.converged
    assert solved.sum() >= 295
    assert (relative_residual(batch, state)[solved] <= 1e-10).all()
    assert (largest_real_part(batch, state)[solved] < 0).all()


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    singular_value=st.floats(0.0, 4.0),
    exponent=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    rectified=st.booleans(),
    log_tau=st.floats(-2.0, 2.0),
)
def test_converged_means_a_stable_fixed_point(
    n: int, seed: int, singular_value: float, exponent: float, rectified: bool, log_tau: float
) -> None:
    arguments = random_parameters(
        (5,),
        n,
        recurrence="per-circuit",
        shared=False,
        seed=seed,
        singular_value=singular_value,
        exponent=exponent,
        rectified=rectified,
    )
    circuit = Circuit(**arguments, tau_y=10.0**log_tau)
    state = circuit.steady_state(tol=1e-9, on_failure="ignore")
    solved = state.converged
    # The last bits of a residual depend on the order of its sums.
    assert (relative_residual(circuit, state)[solved] <= 1e-9 * (1 + 1e-6)).all()
    assert (largest_real_part(circuit, state)[solved] < 0).all()
    assert torch.isfinite(state.y).all()
    assert torch.isfinite(state.a).all()
    assert torch.isfinite(state.rates).all()


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), singular_value=st.floats(1.0, 4.0))
def test_reported_circuits_do_not_settle(seed: int, singular_value: float) -> None:
    circuit = Circuit(
        **random_parameters(
            (25,),
            2,
            recurrence="per-circuit",
            shared=False,
            seed=seed,
            singular_value=singular_value,
        )
    )
    state = circuit.steady_state(tol=1e-9, on_failure="ignore")
    for index in (~state.converged).nonzero().squeeze(-1)[:1].tolist():
        assert not settles(circuit, index, 300.0)


class TestCounterexample:
    """A circuit that Conjecture 5.3 calls stable and that is not."""

    @pytest.mark.slow
    def test_error(self, counterexample: Callable[..., Circuit]) -> None:
        with pytest.raises(SteadyStateError, match=r"1 of 1 circuits .*diverge"):
            counterexample().steady_state(on_failure="error")

    @pytest.mark.slow
    def test_warning_and_nan(self, counterexample: Callable[..., Circuit]) -> None:
        with pytest.warns(SteadyStateWarning, match="2 of 2 circuits"):
            state = counterexample(2).steady_state()
        for part in (state.y, state.a, state.rates):
            assert part.isnan().all()
        assert not state.converged.any()

    @pytest.mark.slow
    @pytest.mark.parametrize("solver", ["auto", "algorithm1"])
    def test_silence_and_finite_numbers(
        self, counterexample: Callable[..., Circuit], solver: str
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = counterexample(3).steady_state(solver, on_failure="ignore")
        for part in (state.y, state.a, state.rates):
            assert torch.isfinite(part).all()
        assert not state.converged.any()
        assert (state.status != Status.CONVERGED).all()

    @pytest.mark.slow
    def test_status(self, counterexample: Callable[..., Circuit]) -> None:
        state = counterexample().steady_state(on_failure="ignore")
        assert state.status.tolist() == [Status.DIVERGED]
        assert Status.DIVERGED.message in str(state)

    @pytest.mark.slow
    def test_it_does_not_settle(self, counterexample: Callable[..., Circuit]) -> None:
        batch = counterexample()
        one = Circuit(
            batch.input_drive,
            torch.full((1, 1), 0.5, dtype=DOUBLE),
            batch.recurrent_weight[None],
            batch.normalization_weight[None],
        )
        assert not settles(one, 0)


@pytest.mark.slow
def test_only_the_bad_circuits_become_nan(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((6,), 1)
    drive = torch.full((6, 1), 0.1, dtype=DOUBLE)
    drive[2] = 1.0
    w, wr = torch.ones(1, 1, dtype=DOUBLE), -torch.ones(1, 1, dtype=DOUBLE)
    bad = Circuit(
        **{
            **arguments,
            "inhibitory_drive": 0.5,
            "input_drive": drive,
            "recurrent_weight": wr,
            "normalization_weight": w,
        }
    )
    with pytest.warns(SteadyStateWarning, match="1 of 6 circuits"):
        state = bad.steady_state()
    good = torch.arange(6) != 2
    assert torch.equal(state.converged, good)
    assert torch.equal(state.y.isnan().squeeze(-1), ~good)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "algorithm1"])
def test_a_bad_circuit_changes_no_bit_of_another(solver: str) -> None:
    """Circuit 3 has no steady state in the one batch and is a good one in the other."""
    drive = torch.linspace(0.05, 0.5, 9, dtype=DOUBLE).unsqueeze(-1)
    wr, w = -torch.ones(1, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    states = []
    for strange in (1.0, 0.5):
        drive[8] = strange
        circuit = Circuit(drive.clone(), 0.5, wr, w)
        states.append(circuit.steady_state(solver, tol=1e-10, on_failure="ignore"))
    assert not states[0].converged[8]
    assert states[0].converged[:8].all()
    for name in ("y", "a", "rates", "converged", "residual", "iterations", "status"):
        first, second = (getattr(state, name)[:8] for state in states)
        assert torch.equal(first, second), name


def test_results_agree_whatever_the_batch(parameters: Callable[..., dict[str, Any]]) -> None:
    arguments = parameters((20,), 3, recurrence="shared")
    batch = Circuit(**arguments).steady_state(tol=1e-12)
    for index in (0, 7, 19):
        drive = arguments["input_drive"][index]
        alone = Circuit(**{**arguments, "input_drive": drive}).steady_state(tol=1e-12)
        torch.testing.assert_close(alone.y, batch.y[index], rtol=1e-9, atol=1e-11)
        assert alone.y.shape == (3,)


def test_large_batches_drop_finished_circuits(circuit: Callable[..., Circuit]) -> None:
    """From 1,024 circuits on the solver compacts its batch; nothing else may change."""
    large = circuit((1500,), 3)
    state = large.steady_state(tol=1e-12, on_failure="ignore")
    small = Circuit(
        large.input_drive[:500],
        large.inhibitory_drive,
        large.recurrent_weight,
        large.normalization_weight,
    ).steady_state(tol=1e-12, on_failure="ignore")
    both = state.converged[:500] & small.converged
    assert both.all()
    torch.testing.assert_close(state.y[:500], small.y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("recurrence", ["identity", "shared"])
@pytest.mark.parametrize("rectified", [False, True])
def test_zero_input(
    parameters: Callable[..., dict[str, Any]], recurrence: str, rectified: bool
) -> None:
    arguments = parameters((3,), 4, recurrence=recurrence, rectified=rectified)
    drive = torch.zeros_like(arguments["input_drive"])
    circuit = Circuit(**{**arguments, "input_drive": drive})
    state = circuit.steady_state(on_failure="error")
    assert (state.y == 0).all()
    torch.testing.assert_close(state.a, circuit.inhibitory_drive.expand(3, 4))


def test_a_converged_residual_is_at_most_tol_in_every_precision(
    circuit: Callable[..., Circuit],
) -> None:
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        state = circuit((200,), 5, dtype=dtype).steady_state(tol=tol)
        assert (state.residual <= tol).all()


def test_iterations_are_counted_per_circuit(circuit: Callable[..., Circuit]) -> None:
    state = circuit((50,), 3).steady_state(tol=1e-10)
    assert state.iterations.min() >= 1
    assert state.iterations.unique().numel() > 1
    identity = circuit((5,), recurrence="identity").steady_state()
    assert (identity.iterations == 0).all()


def test_the_time_constants_do_not_move_the_steady_state(
    parameters: Callable[..., dict[str, Any]],
) -> None:
    arguments = parameters((10,), 3)
    states = [
        Circuit(**arguments, tau_y=t, tau_a=1 / t).steady_state(tol=1e-12) for t in (0.3, 3.0)
    ]
    torch.testing.assert_close(states[0].y, states[1].y)


def test_summary_prints(circuit: Callable[..., Circuit]) -> None:
    text = str(circuit((7,), 3).steady_state())
    assert text == "SteadyState of 7 circuits, n = 3: 7 converged"


@pytest.mark.slow
def test_a_diverging_search_stays_finite() -> None:
    """Strong recurrences make every iteration overflow."""
    circuit = Circuit(
        **random_parameters((6,), 3, recurrence="per-circuit", singular_value=1e3, shared=False)
    )
    state = circuit.steady_state(on_failure="ignore")
    assert torch.isfinite(state.y).all()
    assert torch.isfinite(state.rates).all()


def test_the_check_of_stability_can_be_left_out(
    circuit: Callable[..., Circuit], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = circuit((10,), 3)
    checked = batch.steady_state()
    monkeypatch.setattr("deq_organics.steady_state.methods.auto.is_stable", None)
    unchecked = batch.steady_state(verify_stability=False)
    assert torch.equal(unchecked.y, checked.y)
    with pytest.raises(TypeError, match="not callable"):
        batch.steady_state()


@pytest.mark.slow
def test_without_the_check_an_unstable_fixed_point_passes() -> None:
    wr = 3.0 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE) + 1.5 * torch.eye(
        2, dtype=DOUBLE
    )
    batch = Circuit(
        torch.tensor([[0.05, 0.02]], dtype=DOUBLE), 0.01, wr, torch.ones(2, 2, dtype=DOUBLE)
    )
    assert not batch.steady_state(on_failure="ignore").converged.any()
    state = batch.steady_state(on_failure="ignore", verify_stability=False)
    assert state.converged.all()
    assert not check_stability(batch, state).stable.any()
