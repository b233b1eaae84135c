"""Every solver by its name, Algorithm 1 to the letter, and the parts of the default solver."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _circuits import DOUBLE, MODELS, random_parameters
from torch import Tensor

from deq_organics import Circuit, Status
from deq_organics.stability.spectrum import is_stable, leading_eigenvalues
from deq_organics.steady_state.methods import DEFAULT_MAX_ITER, SOLVERS
from deq_organics.steady_state.methods.acceleration import SecantAccelerator, rounding_part
from deq_organics.steady_state.methods.newton import solve_newton
from deq_organics.steady_state.methods.normalized import solve_normalized
from deq_organics.steady_state.methods.preconditioner import Preconditioner
from deq_organics.steady_state.methods.relaxation.dynamics import follow, rest


def test_names() -> None:
    assert SOLVERS == (
        "auto",
        "algorithm1",
        "anderson",
        "broyden",
        "fixed_point_iter",
        "simple_fixed_point_iter",
    )
    assert DEFAULT_MAX_ITER.keys() == set(SOLVERS)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rectified", [False, True])
def test_solvers_agree(circuit: Callable[..., Circuit], solver: str, rectified: bool) -> None:
    batch = circuit((20,), 3, rectified=rectified)
    expected = batch.steady_state(tol=1e-12)
    state = batch.steady_state(solver, tol=1e-9, on_failure="ignore")
    good = state.converged
    assert good.sum() >= 15
    torch.testing.assert_close(state.y[good], expected.y[good], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.a[good], expected.a[good], rtol=1e-5, atol=1e-6)
    assert (state.residual[good] <= 1e-9).all()
    assert (state.residual[~good] > 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_agree(parameters: Callable[..., dict[str, Any]], solver: str) -> None:
    states, masks = [], []
    for name in ("auto", solver):
        arguments = parameters((5,), 3)
        wr = arguments["recurrent_weight"].requires_grad_()
        state = Circuit(**arguments).steady_state(name, tol=1e-9, on_failure="ignore")
        keep = state.converged
        masks.append(keep)
        assert keep.sum() >= 3
        states.append((state, wr))
    both = masks[0] & masks[1]
    grads = [torch.autograd.grad(state.rates[both].sum(), wr)[0] for state, wr in states]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_too_few_iterations_are_reported(circuit: Callable[..., Circuit], solver: str) -> None:
    state = circuit((5,), 3).steady_state(solver, tol=1e-13, max_iter=1, on_failure="ignore")
    if solver == "auto":  # its safeguard does not count as iterations of the fast method
        assert state.converged.all()
    else:
        assert not state.converged.any()
        assert (state.status == Status.MAX_ITERATIONS).all()


def test_algorithm1_is_the_papers_iteration(circuit: Callable[..., Circuit]) -> None:
    """Three steps by hand, for one circuit, with the formulas of the paper."""
    one = circuit((), 4)
    d, c, wr, w = (
        one.input_drive,
        one.inhibitory_drive,
        one.recurrent_weight,
        one.normalization_weight,
    )
    size = torch.linalg.matrix_norm(wr, 2)
    a = c + w @ (c / (size - size**2 + size**2 * c.sqrt()) ** 2 * (wr @ d) ** 2)
    for _ in range(3):
        y = torch.linalg.solve(torch.eye(4, dtype=DOUBLE) - torch.diag(1 - a.sqrt()) @ wr, d)
        a = c + w @ (y**2 * a)
    state = one.steady_state("algorithm1", tol=1e-14, max_iter=3, on_failure="ignore")
    torch.testing.assert_close(state.y, y)
    torch.testing.assert_close(state.a, a)
    assert state.iterations == 3


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "rectified"), MODELS)
def test_algorithm1_solves_every_model(
    circuit: Callable[..., Circuit], exponent: float, rectified: bool
) -> None:
    batch = circuit((30,), 4, exponent=exponent, rectified=rectified)
    state = batch.steady_state("algorithm1", tol=1e-8, max_iter=200, on_failure="ignore")
    expected = batch.steady_state(tol=1e-12)
    good = state.converged
    assert good.sum() >= 28
    torch.testing.assert_close(state.y[good], expected.y[good], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_auto_solves_what_algorithm1_solves(circuit: Callable[..., Circuit]) -> None:
    """EQUATIONS.md: at n = 2 Algorithm 1 never converges in about 0.5 % of the circuits."""
    batch = circuit((1000,), 2, recurrence="per-circuit", shared=False)
    paper = batch.steady_state("algorithm1", tol=1e-6, max_iter=500, on_failure="ignore")
    ours = batch.steady_state(tol=1e-6, on_failure="ignore")
    stable = leading_eigenvalues(batch.flatten(), paper.y, paper.a).real < 0
    assert 2 <= (~paper.converged).sum() <= 60
    assert ours.converged[paper.converged & stable].all()


@pytest.mark.slow
def test_the_safeguard_alone_solves(circuit: Callable[..., Circuit]) -> None:
    """With one fast step allowed, Newton's method and the dynamics do the work."""
    batch = circuit((50,), 3, recurrence="per-circuit", shared=False)
    alone = batch.steady_state(tol=1e-10, max_iter=1, on_failure="ignore")
    expected = batch.steady_state(tol=1e-10)
    assert alone.converged.all()
    torch.testing.assert_close(alone.y, expected.y, rtol=1e-6, atol=1e-8)


def test_newton_converges_from_nearby(circuit: Callable[..., Circuit]) -> None:
    batch = circuit((20,), 3)
    exact = batch.steady_state(tol=1e-13)
    found = solve_newton(batch.flatten(), 1.01 * exact.y, 1.01 * exact.a, 1e-13, 10)
    assert (found.status == Status.CONVERGED).all()
    torch.testing.assert_close(found.y, exact.y)
    assert (found.iterations <= 6).all()


def test_newton_keeps_a_positive_and_survives_nan(circuit: Callable[..., Circuit]) -> None:
    problem = circuit((4,), 3).flatten()
    y = torch.full((4, 3), 50.0, dtype=DOUBLE)
    y[0] = torch.nan
    found = solve_newton(problem, y, torch.full_like(y, 1e-3), 1e-12, 20)
    assert (found.a > 0).all()
    assert found.status[0] == Status.MAX_ITERATIONS


@pytest.mark.slow
def test_the_dynamics_settle_or_say_how_they_do_not(
    circuit: Callable[..., Circuit], counterexample: Callable[..., Circuit]
) -> None:
    batch = circuit((10,), 3)
    problem = batch.flatten()
    solution = follow(problem, rest(problem), 1e-9)
    assert (solution.status == Status.CONVERGED).all()
    torch.testing.assert_close(solution.y, batch.steady_state(tol=1e-12).y, rtol=1e-6, atol=1e-6)
    problem = counterexample().flatten()
    solution = follow(problem, rest(problem), 1e-9)
    assert solution.status.tolist() == [Status.DIVERGED]


@pytest.mark.slow
def test_the_dynamics_recognise_an_oscillation() -> None:
    """A rotation with gain above one: the trajectory ends on a limit cycle."""
    wr = 3.0 * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE) + 1.5 * torch.eye(
        2, dtype=DOUBLE
    )
    circuit = Circuit(
        torch.tensor([[0.05, 0.02]], dtype=DOUBLE), 0.01, wr, torch.ones(2, 2, dtype=DOUBLE)
    )
    state = circuit.steady_state(on_failure="ignore")
    assert state.status.tolist() == [Status.CYCLE]


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 12, 24])
@pytest.mark.parametrize("rectified", [False, True])
def test_verdicts_agree_with_the_eigenvalues(
    parameters: Callable[..., dict[str, Any]],
    any_state: Callable[..., tuple[Tensor, Tensor]],
    n: int,
    rectified: bool,
) -> None:
    seen = torch.zeros(2)
    for singular_value in (0.5, 1.0, 2.0):
        arguments = parameters(
            (200,),
            n,
            recurrence="per-circuit",
            singular_value=singular_value,
            rectified=rectified,
        )
        for tau_a in (0.1, 1.0, 10.0):
            circuit = Circuit(**arguments, tau_a=tau_a)
            y, a = any_state(circuit)
            # Half of the states are far from rest, where circuits are unstable.
            problem, y = circuit.flatten(), y * torch.linspace(0.1, 1.0, 200).unsqueeze(-1)
            everyone = torch.ones(200, dtype=torch.bool)
            expected = leading_eigenvalues(problem, y, a).real < 0
            assert torch.equal(is_stable(problem, y, a, everyone), expected)
            seen += torch.stack([expected.sum(), (~expected).sum()])
    assert (seen > 50).all()


def test_the_preconditioner_is_exact_for_a_diagonal() -> None:
    generator = torch.Generator().manual_seed(1)
    wr = torch.diag(2.0 * torch.rand(5, generator=generator, dtype=DOUBLE) - 1.0)
    drive, gain = torch.rand(2, 7, 5, generator=generator, dtype=DOUBLE)
    problem = Circuit(drive, 0.3, wr, torch.ones(5, 5, dtype=DOUBLE)).flatten()
    preconditioner, matrix = Preconditioner(problem), torch.eye(5).double() - gain[..., None] * wr
    for transpose in (False, True):
        solution = preconditioner.at(gain, None, transpose=transpose)(drive)
        there = matrix.mT if transpose else matrix
        torch.testing.assert_close((there @ solution[..., None])[..., 0], drive)


def test_the_accelerator_solves_a_linear_problem_in_n_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, generator=generator, dtype=DOUBLE)
    target = torch.randn(6, 4, generator=generator, dtype=DOUBLE)
    x = torch.zeros(6, 4, dtype=DOUBLE)
    accelerator = SecantAccelerator(6, rounding_part(DOUBLE))
    for _ in range(7):
        x = accelerator.propose(x, target - x @ matrix.T)
    torch.testing.assert_close(x @ matrix.T, target, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12, 80])
def test_the_fast_iteration_is_not_thrown_off_close_to_the_solution(n: int) -> None:
    """At 4 neurons it was, for most circuits, where ``tol`` was below 1e-8."""
    for rectified, singular_value in itertools.product((False, True), (0.5, 1.0)):
        circuit = Circuit(
            **random_parameters((64,), n, rectified=rectified, singular_value=singular_value)
        )
        found = solve_normalized(circuit.flatten(), 1e-13, 60)
        assert (found.status == Status.CONVERGED).all()
        assert found.iterations.float().mean() < 25


@pytest.mark.slow
def test_nothing_but_its_own_solvers_needs_torchdeq() -> None:
    code = """
import sys
sys.modules["torchdeq"] = None
import torch, recurrent
from deq_organics import ORGaNICsDEQ
print(ORGaNICsDEQ(2, 3)(torch.ones(4, 2)).shape)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "torch.Size([4, 3])"
