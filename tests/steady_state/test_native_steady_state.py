"""Steady states by C kernels: against torch, against float64, and whatever batch is around them."""

import threading
import warnings
from typing import Any

import pytest
import torch
from _circuits import random_parameters
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ
from deq_organics.native import native_refusal
from deq_organics.steady_state import SteadyState
from deq_organics.steady_state.backends.native import search

pytestmark = pytest.mark.skipif(
    native_refusal(torch.device("cpu")) is not None, reason="no compiled library"
)

# On both sides of a vector, of a panel (8, 16 or 32 columns) and of two.
QUICK, SLOW = (1, 8, 33), (2, 5, 7, 9, 15, 16, 17, 31, 48, 64, 65, 70)
SIZES = (*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW))
# On both sides of a tile of 24 samples.
BATCHES = (1, 3, 23, 24, 25, 61)


def draw(n: int, batch: int, **options: Any) -> dict[str, Any]:
    return random_parameters((batch,), n, dtype=torch.float32, **options)


def solve(given: dict[str, Any], backend: str = "native", **options: Any) -> SteadyState:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Circuit(**given).steady_state(backend=backend, on_failure="ignore", **options)


def doubled(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}


def gradients(given: dict[str, Any], names: tuple[str, ...], **options: Any) -> list[Tensor]:
    """Of a random weighting of the states, by the tensors of these names."""
    leaves = {name: given[name].detach().clone().requires_grad_() for name in names}
    state = solve({**given, **leaves}, **options)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, *state.y.shape, generator=generator).to(state.y)
    keep = state.converged.unsqueeze(-1)
    total = (torch.where(keep, weights[0] * state.y + weights[1] * state.a, 0.0)).sum()
    return list(torch.autograd.grad(total, list(leaves.values())))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_states_are_those_of_float64(n: int, rectified: bool) -> None:
    for seed, batch in enumerate(BATCHES[n % 2 :: 2]):
        given = draw(n, batch, rectified=rectified, seed=seed)
        found, plain = solve(given), solve(given, "torch")
        exact = solve(doubled(given), "torch", tol=1e-12)
        assert torch.equal(found.status, plain.status)
        # Of several fixed points each may find its own: those of one are compared.
        same = found.converged & exact.converged
        same &= (plain.y - exact.y).norm(dim=-1) < 1e-3 * exact.y.norm(dim=-1)
        assert same.sum() >= 0.9 * batch
        again = (
            Circuit(**doubled(given))
            .flatten()
            .relative_residual(found.y.double(), found.a.double())
        )
        assert (again[found.converged] <= 2.5e-6).all()
        gap = (found.y[same].double() - exact.y[same]).norm(dim=-1) / exact.y[same].norm(dim=-1)
        theirs = (plain.y[same].double() - exact.y[same]).norm(dim=-1)
        theirs = theirs / exact.y[same].norm(dim=-1)
        assert gap.max() <= max(1e-5, 4.0 * float(theirs.max()))
        assert (found.iterations - plain.iterations).abs().float().mean() <= 0.5


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("n", [1, 7, 16, 33, 65])
def test_gradients_are_those_of_float64(n: int, rectified: bool) -> None:
    names = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")
    # Below 1 the Jacobian is far from singular.
    given = draw(n, 37, rectified=rectified, seed=n, singular_value=0.8)
    found = gradients(given, names)
    exact = gradients(doubled(given), names, backend="torch", tol=1e-12)
    for name, one, other in zip(names, found, exact, strict=True):
        assert one.shape == given[name].shape
        assert error(one, other) <= 2e-5, name


@pytest.mark.parametrize("rectified", [False, True])
def test_identity_as_a_matrix(rectified: bool) -> None:
    given = {**draw(19, 30, rectified=rectified), "recurrent_weight": torch.eye(19)}
    found, exact = solve(given), solve(doubled(given), "torch")
    assert found.converged.all()
    assert not found.iterations.any()
    assert error(found.y, exact.y) <= 3e-7
    names = ("input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight")
    exact_grads = gradients(doubled(given), names, backend="torch")
    for one, other in zip(gradients(given, names), exact_grads, strict=True):
        assert error(one, other) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-15, 1e-8, 1e-3, 1e4, 1e15])
@pytest.mark.parametrize("identity", [False, True])
def test_no_unit_is_special(unit: float, identity: bool) -> None:
    """Inputs and semisaturations in another unit: the same a, and y in that unit."""
    given = draw(17, 26, seed=5)
    if identity:
        given["recurrent_weight"] = torch.eye(17)
    scaled = {
        **given,
        "input_drive": given["input_drive"] * unit,
        "normalization_weight": given["normalization_weight"] / unit / unit,
    }
    found, exact = solve(scaled), solve(doubled(given), "torch", tol=1e-12)
    plain = solve(scaled, "torch")
    assert torch.equal(found.status, plain.status)
    assert found.converged.sum() >= 24
    both = found.converged & exact.converged
    assert error(found.y[both] / unit, exact.y[both]) <= 1e-5
    assert error(found.a[both], exact.a[both]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 33])
def test_no_sample_depends_on_its_batch(n: int) -> None:
    """Bit for bit, value and gradient, whatever the threads and the neighbours are."""
    # Easy ones and harder ones, none so hard that it goes to torch.
    given = draw(n, 61, seed=n, singular_value=0.9)
    given["input_drive"] = given["input_drive"] * torch.logspace(-3, 0, 61).unsqueeze(-1)
    names = ("input_drive",)
    whole, slope = solve(given), gradients(given, names)[0]
    assert whole.converged.all()
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 61, n, generator=torch.Generator().manual_seed(3))
    for count in (1, 2, 3, 5):
        index = torch.randperm(61, generator=generator)[: 10 * count]
        torch.set_num_threads(count)
        try:
            part = solve({**given, "input_drive": given["input_drive"][index]})
            leaf = given["input_drive"][index].clone().requires_grad_()
            state = solve({**given, "input_drive": leaf})
            keep = state.converged.unsqueeze(-1)
            terms = weights[0][index] * state.y + weights[1][index] * state.a
            (own,) = torch.autograd.grad(torch.where(keep, terms, 0.0).sum(), leaf)
        finally:
            torch.set_num_threads(threads)
        for field in ("y", "a", "residual", "iterations", "status"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[index]), field
        assert torch.equal(own, slope[index])


def test_strides_and_leading_dimensions() -> None:
    given = draw(9, 12, seed=2)
    plain = solve(given)
    wide = torch.randn(9, 2, 12)
    wide[:, 1] = given["input_drive"].mT
    strided = {
        **given,
        "input_drive": wide[:, 1].mT,
        "recurrent_weight": given["recurrent_weight"].mT.contiguous().mT[None],
        "normalization_weight": given["normalization_weight"].repeat(2, 2)[:9, 9:],
        "inhibitory_drive": given["inhibitory_drive"].expand(12, 9),
    }
    assert not strided["input_drive"].is_contiguous()
    other = solve(strided)
    # One inhibitory drive for each sample has another reference.
    torch.testing.assert_close(other.y, plain.y, rtol=1e-5, atol=1e-6)
    folded = solve({**given, "input_drive": given["input_drive"].reshape(3, 2, 2, 9)})
    assert torch.equal(folded.y, plain.y.reshape(3, 2, 2, 9))
    one = solve({**given, "input_drive": given["input_drive"][0]})
    assert torch.equal(one.y, plain.y[0])


def test_several_threads_at_once() -> None:
    problems = [draw(21, 40, seed=seed) for seed in range(4)]
    alone = [(solve(given).y, gradients(given, ("recurrent_weight",))[0]) for given in problems]
    found: list[Any] = [None] * 4

    def run(i: int) -> None:
        for _ in range(5):
            found[i] = (
                Circuit(**problems[i]).steady_state(backend="native", on_failure="ignore").y,
                gradients(problems[i], ("recurrent_weight",))[0],
            )

    # Filters of warnings belong to the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(found, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_what_it_cannot_solve_goes_to_torch(counterexample: Any) -> None:
    """Status by status, among samples that converge."""
    plain = counterexample(8, torch.float32)
    drive = torch.linspace(0.0, 1.0, 8).unsqueeze(-1)
    given = {**plain.parameters._asdict(), "input_drive": drive}
    found, other = solve(given), solve(given, "torch")
    assert len(set(found.status.tolist())) > 1
    for field in ("status", "reached", "converged"):
        assert torch.equal(getattr(found, field), getattr(other, field)), field


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 13])
def test_unstable_fixed_points_are_not_returned(n: int) -> None:
    """Negative recurrence and large inputs: the verdict is that of dense eigenvalues."""
    given = draw(n, 60)
    # With both kinds among them.
    given["input_drive"] = given["input_drive"][34:42]
    given["recurrent_weight"] = 0.3 * given["recurrent_weight"] - torch.eye(n)
    given["input_drive"] = 3.0 * given["input_drive"]
    exact = Circuit(**doubled(given)).flatten()

    def stable(state: SteadyState) -> Tensor:
        jacobian = exact.jacobian(state.y.double(), state.a.double())
        return torch.linalg.eigvals(jacobian).real.amax(-1) < 0

    unchecked = solve(given, verify_stability=False, max_iter=200)
    assert (unchecked.converged & ~stable(unchecked)).any()
    found = solve(given, max_iter=200)
    assert stable(found)[found.converged].all()
    assert torch.equal(found.status, solve(given, "torch", max_iter=200).status)


def test_few_iterations() -> None:
    """What is short of its tolerance after max_iter steps is rescued or refused, as by torch."""
    given = draw(20, 50, seed=3)
    found, other = solve(given, max_iter=2), solve(given, "torch", max_iter=2)
    assert torch.equal(found.status, other.status)
    assert (found.residual[found.converged] <= 2e-6).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"exponent": 3.0}, "the exponent 3, only 2"),
        ({"recurrent_weight": None}, "circuits without recurrent weights"),
        ({"input_drive": torch.ones(0, 4)}, "an empty batch"),
        ({"recurrent_weight": torch.zeros(3, 4, 4)}, "weights of each circuit's own"),
        ({"normalization_weight": torch.ones(3, 4, 4)}, "weights of each circuit's own"),
    ],
)
def test_refusals(change: dict[str, Any], told: str) -> None:
    given = {**draw(4, 3), **change}
    with pytest.raises(RuntimeError, match=f"backend: got 'native', which does not.*{told}"):
        Circuit(**given).steady_state(backend="native")
    choice = Circuit(**given).backend_for()
    assert choice.backend == "torch"
    assert told in choice.reason


def test_refusals_of_the_call() -> None:
    plain = Circuit(**draw(4, 3))
    with pytest.raises(RuntimeError, match="'native', which does not support the solver"):
        plain.steady_state("algorithm1", backend="native")
    with pytest.raises(RuntimeError, match="following the dynamics from a start"):
        plain.steady_state(backend="native", start="rest")
    with pytest.raises(RuntimeError, match=r"torch\.float64, only float32"):
        Circuit(**doubled(draw(4, 3))).steady_state(backend="native")
    assert plain.backend_for().backend == "native"

    def state(drive: Tensor) -> Tensor:
        return Circuit(**{**draw(4, 3), "input_drive": drive}).steady_state(backend="native").y

    with pytest.raises(RuntimeError, match=r"torch\.func transforms"):
        torch.func.jacrev(state)(draw(4, 3)["input_drive"])


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "native_refusal", lambda device: "this installation: no library")
    choice = Circuit(**draw(4, 3)).backend_for()
    assert choice.backend == "torch"
    assert "native does not support this installation: no library" in choice.reason


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "name", ["input_drive", "inhibitory_drive", "recurrent_weight", "normalization_weight"]
)
def test_values_that_are_not_finite(name: str, value: float) -> None:
    """The same error as torch's, of a circuit and of a layer."""
    given = draw(6, 30)
    given[name] = given[name].clone()
    given[name].view(-1)[3] = value
    for backend in ("native", "torch"):
        with pytest.raises(ValueError, match=f"{name}: got 1 NaN or infinite values"):
            solve(given, backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_layer_names_what_is_not_finite(backend: str) -> None:
    layer = ORGaNICsDEQ(5, 7, backend=backend)
    x = torch.randn(40, 5)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="x: got 1 NaN or infinite values of 200"):
        layer(x)
    with torch.no_grad():
        layer.input_weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="input_weight: got 1 NaN or infinite values of 35"):
        layer(torch.randn(40, 5))


def test_gradients_that_are_not_finite_stay_with_their_sample() -> None:
    leaf = draw(6, 30)["input_drive"].requires_grad_()
    state = solve({**draw(6, 30), "input_drive": leaf})
    outside = torch.ones_like(leaf)
    outside[4, 2] = torch.nan
    state.y.backward(outside)
    assert leaf.grad is not None
    assert leaf.grad[4].isnan().all()
    assert torch.isfinite(leaf.grad[torch.arange(30) != 4]).all()


def test_second_derivatives_are_torchs() -> None:
    given = draw(5, 4, singular_value=0.7)
    single = draw(5, 4, singular_value=0.7)["input_drive"].requires_grad_()
    double = doubled(given)["input_drive"].requires_grad_()
    results = []
    for leaf, plain, backend in ((single, given, "native"), (double, doubled(given), "torch")):
        y = solve({**plain, "input_drive": leaf}, backend, tol=1e-6).y
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert error(*results) <= 1e-4


def test_sizes_are_checked_before_memory_is_touched() -> None:
    from deq_organics.steady_state.backends.native import calls

    problem = Circuit(**draw(4, 3)).flatten()
    shared = calls.prepare(problem)
    broken = shared._replace(diagonal=shared.diagonal.double())
    with pytest.raises(ValueError, match=r"diagonal: got torch\.float64"):
        calls.solve(problem, broken, 1e-6, 2e-6, 60)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
def test_gated_drive(n: int) -> None:
    """Value and gradients against torch in float64, rows of any size and zero ones among them."""
    from deq_organics.gated_drive import gated_drive, native
    from deq_organics.layer import _gated_drive

    drive, logit, grad = torch.randn(3, 2, 9, n, generator=torch.Generator().manual_seed(n))
    drive = drive * torch.logspace(-30, 30, 9).unsqueeze(-1)
    drive[0, 3] = 0.0
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [part.to(dtype).requires_grad_() for part in (drive, logit)]
        assert (native.refusal(*leaves) is None) == (dtype == torch.float32)
        if dtype == torch.float32:
            gated = gated_drive(leaves[0], leaves[1], _gated_drive, "native")
        else:
            gated = _gated_drive(*leaves)
        results.append((gated, *torch.autograd.grad(gated, leaves, grad.to(dtype))))
    for index, (one, other) in enumerate(zip(*results, strict=True)):
        scale = other.abs().amax(-1, keepdim=True).clamp_min(1e-37)
        # One neuron alone has length 1: its gradient is rounding.
        if (n, index) != (1, 1):
            assert ((one - other).abs() <= 2e-6 * scale).all()
    assert not results[0][1][0, 3].any()
    broken = drive.clone()
    broken[1, 2, n // 2] = torch.nan
    assert native.forward(broken, logit)[1, 2].isnan().all()


def test_layer_names_its_backend() -> None:
    layer = ORGaNICsDEQ(5, 7)
    assert layer.backend_for(torch.zeros(2, 5)).backend == "native"
    layer.backend = "native"
    choice = layer.backend_for(torch.zeros(2, 5))
    assert choice.backend == "native"
    assert choice.reason == "named; its singular-value bound by torch (native has no kernel of it)"
    layer(torch.rand(2, 5)).sum().backward()
