"""The CUDA backend of the steady state against torch and against float64."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from _circuits import random_parameters
from _kernels import CPU_REFUSAL, DEVICE, KERNELS, pass_self_checks
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ, Status, SteadyState, SteadyStateWarning
from deq_organics.problem import Problem
from deq_organics.stability.spectrum import is_stable
from deq_organics.steady_state.backends.triton import search

pytestmark = [
    KERNELS,
    # NumPy's word for what a GPU does in silence, where an iteration diverges.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning"),
]

TOL = 1e-6
LEAVES = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")


@pytest.fixture(autouse=True)
def _kernels_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the interpreter the kernels take tensors on the CPU."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(search, "kernel_refusal", lambda device: None)
        pass_self_checks(monkeypatch)


def arguments(batch: int, n: int, **options: Any) -> dict[str, Any]:
    found = random_parameters((batch,), n, dtype=torch.float32, **options)
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    """Relative error of each row, by Euclidean norms."""
    error = (found.double() - expected.double()).norm(dim=-1)
    assert (error <= bound * expected.double().norm(dim=-1).clamp_min(1e-6)).all()


def gradients(state: SteadyState, leaves: Sequence[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    dtype, device = state.y.dtype, state.y.device
    weights = torch.randn(2, *state.y.shape, generator=generator, dtype=torch.float64)
    v, u = weights.to(device, dtype)
    return torch.autograd.grad((v * state.y + u * state.a).sum(), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(
    # A program takes one sample: a few of them show that each finds its own.
    ("batch", "n", "shared"),
    [(1, 1, True), (3, 5, False), (3, 16, True), (2, 33, False)],
)
def test_states_and_gradients_against_float64(
    batch: int, n: int, shared: bool, rectified: bool
) -> None:
    given = arguments(batch, n, rectified=rectified, seed=n)
    given["recurrent_weight"] *= 0.9
    if not shared:
        factor = torch.linspace(0.5, 2.0, batch, device=DEVICE).unsqueeze(-1)
        given["inhibitory_drive"] = factor * given["inhibitory_drive"]
    results = []
    for dtype, backend in ((torch.float32, "cuda"), (torch.float64, "torch")):
        leaves = [given[name].to(dtype).requires_grad_() for name in LEAVES]
        circuit = Circuit(**{**given, **dict(zip(LEAVES, leaves, strict=True))})
        state = circuit.steady_state(
            tol=TOL if dtype == torch.float32 else 1e-12,
            on_failure="error",
            verify_stability=False,
            backend=backend,
        )
        results.append((state, gradients(state, leaves)))
        if backend == "cuda":
            honest = circuit.flatten().relative_residual(state.y.detach(), state.a.detach())
            assert (state.residual <= 2e-6).all()
            torch.testing.assert_close(state.residual, honest, rtol=0, atol=3e-7)
    (state, found), (exact, expected) = results
    close(state.y, exact.y, 3e-5)
    close(state.a, exact.a, 3e-5)
    for one, other in zip(found, expected, strict=True):
        close(one.flatten(), other.flatten(), 1e-4)


@pytest.mark.slow
def test_as_many_iterations_as_torch() -> None:
    circuit = Circuit(**arguments(5, 16))
    found = circuit.steady_state(backend="cuda")
    expected = circuit.steady_state(backend="torch")
    assert torch.equal(found.status, expected.status)
    assert (found.iterations <= expected.iterations + 1).all()
    assert found.status.dtype == found.iterations.dtype == torch.int64


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", ["spectral", "unconstrained"])
@pytest.mark.parametrize("input_gain", ["attention", "tied"])
def test_the_layer(recurrence: str, input_gain: str) -> None:
    torch.manual_seed(0)
    layer = ORGaNICsDEQ(
        6, 12, recurrence, input_gain, learn_semisaturation=True, device=DEVICE, backend="cuda"
    )
    weight = 0.5 * torch.eye(12, device=DEVICE) + 0.03
    layer.recurrent_weight = weight if recurrence == "spectral" else torch.nn.Parameter(weight)
    exact = copy.deepcopy(layer).double()
    exact.backend, exact.tol = "torch", 1e-12
    x = torch.rand(2, 2, 6, device=DEVICE)
    weights = torch.randn(2, 2, 12, device=DEVICE)
    results = []
    for module, values in ((layer, x), (exact, x.double())):
        values = values.clone().requires_grad_()
        rates = module(values)
        leaves = [values, *module.parameters()]
        results.append((rates, torch.autograd.grad((rates * weights).sum(), leaves)))
    (rates, found), (expected_rates, expected) = results
    close(rates, expected_rates, 3e-5)
    for one, other in zip(found, expected, strict=True):
        close(one.flatten(), other.flatten(), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    given = random_parameters(shape, 5, dtype=torch.float32)
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    state = Circuit(**given).steady_state(backend="cuda")
    expected = Circuit(**given).steady_state(backend="torch")
    assert state.y.shape == (*shape, 5)
    assert state.status.shape == state.residual.shape == shape
    torch.testing.assert_close(state.y, expected.y, rtol=1e-5, atol=1e-5)


def test_identity_needs_no_iteration() -> None:
    given = arguments(3, 9)
    given["recurrent_weight"] = torch.eye(9, device=DEVICE)
    state = Circuit(**given).steady_state(backend="cuda")
    closed = Circuit(**{**given, "recurrent_weight": None}).closed_form()
    assert (state.iterations == 0).all()
    torch.testing.assert_close(state.y, closed[0], rtol=1e-5, atol=1e-6)


def test_zero_drive() -> None:
    given = arguments(3, 9)
    given["input_drive"] = torch.zeros_like(given["input_drive"])
    state = Circuit(**given).steady_state(backend="cuda")
    assert (state.y == 0).all()
    torch.testing.assert_close(state.a, given["inhibitory_drive"].expand(3, 9))


@pytest.mark.slow
def test_samples_do_not_depend_on_their_neighbours() -> None:
    given = arguments(4, 9)
    alone = {**given, "input_drive": given["input_drive"][2:3]}
    together = Circuit(**given).steady_state(backend="cuda")
    single = Circuit(**alone).steady_state(backend="cuda")
    assert torch.equal(together.y[2:3], single.y)
    given["input_drive"] = given["input_drive"].clone()
    given["input_drive"][0] *= 50.0
    other = Circuit(**given).steady_state(backend="cuda", on_failure="ignore")
    assert torch.equal(together.y[1:], other.y[1:])


class TestWhatTheKernelsLeaveOpen:
    @pytest.mark.slow
    def test_circuits_without_a_steady_state(self) -> None:
        """The counterexample beside circuits that settle."""
        one = torch.ones(1, 1, device=DEVICE)
        drive = torch.tensor([[0.1], [1.0], [0.2]], device=DEVICE, requires_grad=True)
        results = []
        for backend in ("cuda", "torch"):
            with pytest.warns(SteadyStateWarning, match="1 of 3"):
                state = Circuit(drive, 0.5, -one, one).steady_state(backend=backend)
            results.append((state, torch.autograd.grad(state.y.nansum(), drive)[0]))
        (found, gradient), (expected, expected_gradient) = results
        assert torch.equal(found.status, expected.status)
        assert found.converged.tolist() == [True, False, True]
        assert found.y[1].isnan()
        assert gradient[1] == 0
        torch.testing.assert_close(gradient, expected_gradient)

    @pytest.mark.slow
    @pytest.mark.parametrize("factor", [-1.0, 2.0])
    @pytest.mark.parametrize("n", [3, 16])
    def test_hard_circuits_end_as_with_torch(self, n: int, factor: float) -> None:
        given = arguments(4, n, seed=5)
        given["recurrent_weight"] = factor * given["recurrent_weight"]
        given["input_drive"] = given["input_drive"] * torch.logspace(
            -1, 1, 4, device=DEVICE
        ).unsqueeze(-1)
        circuit = Circuit(**given)
        found = circuit.steady_state(on_failure="ignore", backend="cuda")
        expected = circuit.steady_state(on_failure="ignore", backend="torch")
        assert torch.equal(found.converged, expected.converged)
        problem = circuit.flatten()
        assert is_stable(problem, found.y, found.a, found.converged)[found.converged].all()

    def test_too_few_iterations_are_made_up_for(self) -> None:
        circuit = Circuit(**arguments(4, 9))
        state = circuit.steady_state(max_iter=1, backend="cuda")
        assert state.converged.all()
        assert (state.residual <= 2e-6).all()

    def test_too_few_iterations_without_the_check(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the kernel reports when it is asked directly."""
        from deq_organics.steady_state.backends.triton import launch as cuda

        problem = Circuit(**arguments(4, 9)).flatten()
        solution, settled = cuda.solve(problem, cuda.prepare(problem), TOL, 2e-6, 1, True)
        assert not settled.any()
        assert (solution.status == Status.MAX_ITERATIONS).all()
        assert (solution.iterations == 1).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [4, 16])
    def test_unstable_fixed_points_are_not_certified(self, n: int) -> None:
        """Two neurons that excite each other: y = 0 is a fixed point, and unstable."""
        from deq_organics.steady_state.backends.triton import launch as cuda

        wr = torch.zeros(n, n, device=DEVICE)
        wr[0, 1] = wr[1, 0] = 1.5
        zeros = torch.zeros(2, n, device=DEVICE)
        problem = Circuit(zeros, 0.01, wr, torch.ones(n, n, device=DEVICE)).flatten()
        solution, settled = cuda.solve(problem, cuda.prepare(problem), TOL, 2e-6, 60, True)
        assert (solution.status == Status.CONVERGED).all()
        assert not settled.any()
        assert cuda.solve(problem, cuda.prepare(problem), TOL, 2e-6, 60, False)[1].all()

    @pytest.mark.slow
    def test_slow_modes_are_recognized(self) -> None:
        """Some modes decay slowly: the filter leaves four of them, which the verdict looks at."""
        from deq_organics.steady_state.backends.triton import launch as cuda

        n = 16
        given = arguments(3, n)
        c = torch.full((n,), 0.3, device=DEVICE)
        c[:2] = torch.tensor([0.01, 0.02])
        given["recurrent_weight"] = torch.eye(n, device=DEVICE)
        given["recurrent_weight"][5, 6] = 0.1
        given["normalization_weight"] = given["normalization_weight"].clone()
        given["normalization_weight"][:2] = 0.0
        problem = Circuit(**{**given, "inhibitory_drive": c}).flatten()
        solution, settled = cuda.solve(problem, cuda.prepare(problem), TOL, 2e-6, 60, True)
        real = torch.linalg.eigvals(problem.jacobian(solution.y, solution.a)).real.amax(-1)
        assert (real < 0).all()
        assert (real > -0.11).all()
        assert settled.all()

    @pytest.mark.slow
    def test_values_that_are_not_valid(self) -> None:
        layer = ORGaNICsDEQ(3, 5, "unconstrained", device=DEVICE, backend="cuda")
        x = torch.ones(4, 3, device=DEVICE)
        for bad in (torch.nan, torch.inf):
            broken = x.clone()
            broken[1, 1] = bad
            with pytest.raises(ValueError, match="x: got 1 NaN or infinite"):
                layer(broken)
        with torch.no_grad():
            layer.recurrent_weight[0, 1] = torch.nan
        with pytest.raises(ValueError, match="recurrent_weight: got 1 NaN"):
            layer(x)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("normalization_weight", -1e-3),
            ("inhibitory_drive", -1e-6),
            ("tau_y", -1.0),
            ("tau_a", 0),
        ],
    )
    def test_arguments_out_of_range(self, name: str, value: Any) -> None:
        """A layer's circuit reaches the kernels unchecked."""
        n = 5
        given = arguments(3, n)
        given |= {"tau_y": torch.ones(n, device=DEVICE), "tau_a": torch.ones(n, device=DEVICE)}
        given[name] = given[name].clone()
        given[name].view(-1)[1] = value
        names = (*LEAVES, "tau_y", "tau_a", "exponent", "rectified")
        circuit = Circuit.with_unchecked_values(Problem._make(given[key] for key in names))
        with pytest.raises(ValueError, match=f"{name}: got a smallest value"):
            circuit.steady_state(backend="cuda")

    @pytest.mark.slow
    def test_an_adjoint_that_stalls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from deq_organics.steady_state.backends.triton import launch as steady_state

        given = arguments(4, 9)
        results = []
        for steps in (60, 0):
            monkeypatch.setattr(steady_state, "_ADJOINT_MAX_ITER", steps)
            leaves = [given[name].clone().requires_grad_() for name in LEAVES]
            circuit = Circuit(**{**given, **dict(zip(LEAVES, leaves, strict=True))})
            results.append(gradients(circuit.steady_state(backend="cuda"), leaves))
        for one, other in zip(*results, strict=True):
            close(one.flatten(), other.flatten(), 1e-4)


@pytest.mark.slow
def test_second_derivatives_go_through_torch() -> None:
    given = arguments(2, 3)
    drive = given["input_drive"].requires_grad_()
    results = []
    for backend in ("cuda", "torch"):
        y = Circuit(**given).steady_state(backend=backend).y
        (first,) = torch.autograd.grad(y.sum(), drive, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), drive)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def refused(solver: str = "auto", *, transform: bool = False, **changes: Any) -> str:
    circuit = Circuit(**{**arguments(2, 3), **changes})
    choice = circuit.backend_for(solver)
    assert choice.backend == "torch"
    with pytest.raises(RuntimeError, match="backend: got 'cuda', which does not support"):
        circuit.steady_state(solver, backend="cuda")
    return choice.reason


def test_reasons_of_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    per_circuit = torch.rand(2, 3, 3, device=DEVICE)
    assert "the solver 'algorithm1'" in refused("algorithm1")
    assert "closed form" in refused(recurrent_weight=None)
    assert "of each circuit's own" in refused(recurrent_weight=0.1 * per_circuit)
    assert "of each circuit's own" in refused(normalization_weight=per_circuit)
    assert "the exponent 3" in refused(exponent=3.0)
    double = Circuit(**random_parameters((2,), 3)).to(DEVICE)
    assert "torch.float64" in double.backend_for().reason
    large = arguments(1, 257)
    assert "257 neurons, only up to 256" in Circuit(**large).backend_for().reason
    empty = {**arguments(2, 3), "input_drive": torch.empty(0, 3, device=DEVICE)}
    assert "empty batch" in Circuit(**empty).backend_for().reason
    assert Circuit(**arguments(2, 3)).backend_for() == ("cuda", "first choice")
    assert Circuit(**arguments(2, 3)).backend_for(backend="torch") == ("torch", "named")
    monkeypatch.undo()
    cpu = Circuit(**random_parameters((2,), 3, dtype=torch.float32)).backend_for()
    assert cpu.backend == ("torch" if CPU_REFUSAL else "native")
    assert cpu.reason.startswith("cuda does not support tensors on cpu, only on cuda")


@pytest.mark.slow
def test_transforms_are_left_to_torch() -> None:
    given = arguments(2, 3)
    seen = []

    def solve(drive: Tensor) -> Tensor:
        circuit = Circuit(**{**given, "input_drive": drive})
        seen.append(circuit.backend_for().reason)
        return circuit.steady_state().y

    torch.func.vmap(solve)(given["input_drive"])
    torch.func.jvp(solve, (given["input_drive"],), (given["input_drive"],))
    assert all("torch.func transforms" in reason for reason in seen)


def test_a_layer_names_its_backend() -> None:
    x = torch.rand(2, 3, device=DEVICE)
    layer = ORGaNICsDEQ(3, 4, device=DEVICE)
    assert layer.backend_for(x).backend == "cuda"
    assert "backend" not in repr(layer)
    named = ORGaNICsDEQ(3, 4, exponent=3.0, backend="cuda", device=DEVICE)
    assert "backend='cuda'" in repr(named)
    with pytest.raises(RuntimeError, match="the exponent 3, only 2"):
        named(x)
    with pytest.raises(ValueError, match="backend: got 'triton', expected one of"):
        ORGaNICsDEQ(3, 4, backend="triton")
