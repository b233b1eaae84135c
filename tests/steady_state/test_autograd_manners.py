"""Checkpoints, saved-tensor hooks, anomaly detection, memory and warnings as in torch itself."""

import gc
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from _circuits import DOUBLE
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from deq_organics import AdjointWarning, Circuit, ORGaNICsDEQ, SteadyState, SteadyStateWarning
from deq_organics.problem import Problem
from deq_organics.steady_state import function as differentiable
from deq_organics.steady_state.backends import by_torch
from deq_organics.steady_state.options import SolveOptions

RECURRENCES = ("identity", "spectral", "unconstrained")


def make(recurrence: str = "spectral", seed: int = 0, **options: Any) -> ORGaNICsDEQ:
    torch.manual_seed(seed)
    layer = ORGaNICsDEQ(4, 3, recurrence, dtype=DOUBLE, tol=1e-12, **options)
    if recurrence != "identity":
        matrix = torch.randn(3, 3, dtype=DOUBLE)
        layer.fill("recurrent_weight", 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2))
    return layer


def torch_call(tol: float) -> Any:
    """What the function of the main model is called with, beside its tensors."""
    options = SolveOptions.checked("auto", tol, None, "warn", True)
    return differentiable._Call(by_torch.TorchSearch(options, checked=True), 2.0, False)


def with_a_weight_outside_the_bound() -> ORGaNICsDEQ:
    layer = make()
    with torch.no_grad():
        layer.parametrizations.recurrent_weight.original.mul_(3)
    return layer


def that_sometimes_fails(recurrence: str) -> ORGaNICsDEQ:
    """The counterexample of one neuron for x = 1, a circuit that settles for x = -1."""
    layer = ORGaNICsDEQ(1, 1, recurrence, dtype=DOUBLE, semisaturation=2**0.5, solver="algorithm1")
    one = torch.ones(1, 1, dtype=DOUBLE)
    for name, value in (("input_weight", one), ("gain_weight", 9 * one)):
        layer.fill(name, value)
    if recurrence != "identity":
        layer.fill("recurrent_weight", -one)
    return layer


LAYERS: dict[str, Callable[..., ORGaNICsDEQ]] = {
    **{name: lambda name=name: make(name) for name in RECURRENCES}
}
LAYERS["scaled down"] = with_a_weight_outside_the_bound


@pytest.fixture(params=list(LAYERS))
def layer(request: pytest.FixtureRequest) -> ORGaNICsDEQ:
    return LAYERS[request.param]()


def derivatives(
    function: Callable[[Tensor], Tensor], layer: nn.Module, second: bool
) -> tuple[Tensor, ...]:
    """Gradients of a loss, or of a penalty on its gradient, by the input and all weights."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=generator, dtype=DOUBLE).requires_grad_()
    leaves = [x, *layer.parameters()]
    loss = function(x).square().sum()
    if second:
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = slope.square().sum()
    return torch.autograd.grad(loss, leaves)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class TestCheckpoint:
    @pytest.mark.slow
    @pytest.mark.parametrize("second", [False, True])
    def test_without_reentry(self, layer: ORGaNICsDEQ, second: bool) -> None:
        expected = derivatives(layer, layer, second)
        found = derivatives(lambda x: checkpoint(layer, x, use_reentrant=False), layer, second)
        assert_same(found, expected)

    def test_with_reentry(self, layer: ORGaNICsDEQ) -> None:
        x = torch.linspace(-1, 1, 20, dtype=DOUBLE).reshape(5, 4)
        grads = []
        for function in (layer, lambda x: checkpoint(layer, x, use_reentrant=True)):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            function(leaf).square().sum().backward()
            grads.append([leaf.grad, *(p.grad.clone() for p in layer.parameters())])
        assert_same(*grads)

    @pytest.mark.slow
    @pytest.mark.parametrize("second", [False, True])
    def test_nested(self, layer: ORGaNICsDEQ, second: bool) -> None:
        model = nn.Sequential(nn.Linear(4, 4, dtype=DOUBLE), layer, nn.Tanh())

        def inner(x: Tensor) -> Tensor:
            return checkpoint(model, x, use_reentrant=False).sin()

        def outer(x: Tensor) -> Tensor:
            return checkpoint(inner, x, use_reentrant=False)

        expected = derivatives(lambda x: model(x).sin(), model, second)
        assert_same(derivatives(outer, model, second), expected)

    def test_a_circuit_with_weights_of_its_own(
        self, parameters: Callable[..., dict[str, Any]]
    ) -> None:
        arguments = parameters((4,), 3, recurrence="per-circuit", shared=False)
        names = [n for n in arguments if isinstance(arguments[n], torch.Tensor)]
        leaves = [arguments[name].requires_grad_() for name in names]

        def rates(*tensors: Tensor) -> Tensor:
            values = {**arguments, **dict(zip(names, tensors, strict=True))}
            return Circuit(**values).steady_state(tol=1e-12).rates

        expected = torch.autograd.grad(rates(*leaves).square().sum(), leaves)
        found = checkpoint(rates, *leaves, use_reentrant=False).square().sum()
        assert_same(torch.autograd.grad(found, leaves), expected)

    @pytest.mark.slow
    def test_forward_mode(self, layer: ORGaNICsDEQ) -> None:
        x, tangent = torch.randn(2, 5, 4, dtype=DOUBLE)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            try:
                checkpoint(torch.sin, dual, use_reentrant=False)
            except NotImplementedError:
                pytest.skip(f"checkpoints of torch {torch.__version__} have no forward mode")
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            found = checkpoint(layer, dual, use_reentrant=False)
            pushed = torch.autograd.forward_ad.unpack_dual(found).tangent
        _, expected = torch.func.jvp(layer, (x,), (tangent,))  # type: ignore[misc]
        torch.testing.assert_close(pushed, expected)


class TestSavedTensors:
    @pytest.mark.parametrize("second", [False, True])
    def test_on_another_device(self, layer: ORGaNICsDEQ, second: bool) -> None:
        expected = derivatives(layer, layer, second)

        def function(x: Tensor) -> Tensor:
            with save_on_cpu():
                return layer(x)

        assert_same(derivatives(function, layer, second), expected)

    def test_each_is_unpacked_once(self, layer: ORGaNICsDEQ) -> None:
        unpacked: dict[int, int] = {}

        def pack(tensor: Tensor) -> tuple[int, Tensor]:
            unpacked[len(unpacked)] = 0
            return len(unpacked) - 1, tensor

        def unpack(packed: tuple[int, Tensor]) -> Tensor:
            unpacked[packed[0]] += 1
            return packed[1]

        x = torch.randn(5, 4, dtype=DOUBLE, requires_grad=True)
        with saved_tensors_hooks(pack, unpack):
            rates = layer(x)
        rates.square().sum().backward()
        assert unpacked
        assert set(unpacked.values()) == {1}

    @pytest.mark.parametrize("whole_state", [False, True])
    def test_nothing_of_the_input_survives_backward(
        self, layer: ORGaNICsDEQ, whole_state: bool
    ) -> None:
        """With the outputs still alive."""
        x = torch.randn(5, 4, dtype=DOUBLE, requires_grad=True)
        hidden = x * 2
        seen = weakref.ref(hidden)
        gc.disable()
        try:
            out = layer.steady_state(hidden) if whole_state else layer(hidden)
            rates = out.rates if whole_state else out
            rates.sum().backward()
            del hidden
            assert seen() is None
        finally:
            gc.enable()
        assert torch.isfinite(rates).all()

    def test_nothing_of_the_input_survives_without_a_graph(self, layer: ORGaNICsDEQ) -> None:
        x = torch.randn(5, 4, dtype=DOUBLE)
        seen = weakref.ref(x)
        gc.disable()
        try:
            with torch.no_grad():
                state = layer.steady_state(x)
            del x
            assert seen() is None
        finally:
            gc.enable()
        assert torch.isfinite(state.y).all()


@pytest.mark.filterwarnings("ignore::deq_organics.SteadyStateWarning")
@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
class TestRowsWithoutASteadyState:
    """No NaN flows back through what is masked afterwards."""

    def solve(self, on_failure: str, drive: Tensor, wr: Tensor, w: Tensor) -> SteadyState:
        # The solver that gives up soonest.
        return Circuit(drive, 0.5, wr, w).steady_state("algorithm1", 1e-13, on_failure=on_failure)

    @pytest.mark.slow
    @pytest.mark.parametrize("on_failure", ["warn", "ignore"])
    @pytest.mark.parametrize("second", [False, True])
    @pytest.mark.parametrize("output", ["y", "a", "rates"])
    def test_anomaly_detection(self, on_failure: str, second: bool, output: str) -> None:
        def gradients(rows: Any) -> tuple[Tensor, ...]:
            drive = torch.tensor(rows, dtype=DOUBLE).unsqueeze(-1).requires_grad_()
            wr = torch.full((1, 1), -1.0, dtype=DOUBLE, requires_grad=True)
            w = torch.ones(1, 1, dtype=DOUBLE, requires_grad=True)
            leaves = (drive, wr, w)
            state = self.solve(on_failure, *leaves)
            total = getattr(state, output)[state.converged].sum()
            if second:
                slopes = torch.autograd.grad(total, leaves, create_graph=True)
                total = sum(slope.square().sum() for slope in slopes)
            return torch.autograd.grad(total, leaves)

        expected = gradients([0.1, 0.2])
        with torch.autograd.detect_anomaly():
            found = gradients([0.1, 1.0, 0.2, 3.0])
        assert (found[0][[1, 3]] == 0).all()
        torch.testing.assert_close(found[0][[0, 2]], expected[0])
        assert_same(found[1:], expected[1:])

    @pytest.mark.parametrize("recurrence", RECURRENCES)
    def test_a_layer_that_masks(self, recurrence: str) -> None:
        layer = that_sometimes_fails(recurrence)
        with torch.autograd.detect_anomaly():
            x = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE, requires_grad=True)
            rates = layer(x)
            assert rates.isnan().squeeze(-1).tolist() == [recurrence != "identity", False]
            rates.nansum().backward()
        assert torch.isfinite(x.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters())

    def test_a_state_that_has_run_away(self) -> None:
        """A last state whose square overflows leaves no NaN in the shared weights' gradient."""
        drive = torch.tensor([[0.1], [1.0]], dtype=torch.float32, requires_grad=True)
        w = torch.ones(1, 1, requires_grad=True)
        call = torch_call(1e-6)
        saved = (
            drive, torch.full((1,), 0.5), -torch.ones(1, 1), w, torch.ones(1), torch.ones(1), None,
            torch.tensor([[0.1], [1e30]]), torch.tensor([[0.5], [1e30]]), torch.tensor([0, 4]),
        )  # fmt: skip
        with torch.autograd.detect_anomaly():
            grads = differentiable._pull_back(
                call,
                saved,
                (torch.ones(2, 1), torch.ones(2, 1)),
                (False, *[True] * 4, *[False] * 3),
            )
        assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)

    @pytest.mark.filterwarnings("ignore::deq_organics.AdjointWarning")
    def test_a_singular_jacobian_among_others(self) -> None:
        """Second derivatives too: a gradient that is left out leaves nothing behind."""
        call = torch_call(1e-12)
        # y = 0, a = 1/4, wr = 2: the equation of y is (-1 + (1 - 1/2) 2) y = 0.
        d = torch.tensor([[0.3], [0.0]], dtype=DOUBLE, requires_grad=True)
        wr = torch.full((1, 1), 2.0, dtype=DOUBLE, requires_grad=True)
        w = torch.full((1, 1), 0.1, dtype=DOUBLE, requires_grad=True)
        y = torch.tensor([[0.3], [0.0]], dtype=DOUBLE, requires_grad=True)
        a = torch.tensor([[0.6], [0.25]], dtype=DOUBLE, requires_grad=True)
        saved = (
            d, torch.full((1,), 0.25, dtype=DOUBLE), wr, w, torch.ones(1, dtype=DOUBLE),
            torch.ones(1, dtype=DOUBLE), None, y, a, torch.tensor([0, 0]),
        )  # fmt: skip
        one = torch.ones(2, 1, dtype=DOUBLE)
        with torch.autograd.detect_anomaly(), torch.enable_grad():
            grads = differentiable._pull_back(
                call, saved, (one, one), (False, *[True] * 4, *[False] * 3)
            )
            assert grads[1][0] != 0
            assert grads[1][1] == 0
            total: Any = sum(grad.square().sum() for grad in grads if grad is not None)
            second = torch.autograd.grad(total, (y, a, wr, w))
        assert all(torch.isfinite(grad).all() for grad in second)
        assert all((grad[1] == 0).all() for grad in second[:2])


class TestNotFinite:
    """What comes in as NaN goes out as NaN, without a word about the circuit."""

    @pytest.mark.slow
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("second", [False, True])
    def test_cotangent(self, layer: ORGaNICsDEQ, value: float, second: bool) -> None:
        x = torch.randn(4, 4, dtype=DOUBLE, requires_grad=True)
        cotangent = torch.ones(4, 3, dtype=DOUBLE)
        (expected,) = torch.autograd.grad(layer.steady_state(x).y, x, cotangent)
        cotangent[2, 1] = value
        leaves = [x, *layer.parameters()]
        y = layer.steady_state(x).y
        grads = torch.autograd.grad(y, leaves, cotangent, create_graph=second)
        assert grads[0][2].isnan().all()
        kept = [0, 1, 3]
        torch.testing.assert_close(grads[0][kept], expected[kept])
        assert all(grad.isnan().any() for grad in grads[1:])

    def test_tangent(self, layer: ORGaNICsDEQ) -> None:
        x = torch.randn(4, 4, dtype=DOUBLE)
        tangent = torch.ones_like(x)
        _, expected = torch.func.jvp(lambda x: layer.steady_state(x).y, (x,), (tangent,))  # type: ignore[misc]
        tangent[2, 0] = torch.nan
        _, found = torch.func.jvp(lambda x: layer.steady_state(x).y, (x,), (tangent,))  # type: ignore[misc]
        assert found[2].isnan().all()
        torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]])


class TestWarnings:
    """They point to the line of whoever calls the library."""

    def lines_of(self, function: Callable[[], Any]) -> set[tuple[type[Warning], bool]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
        here = __file__
        assert caught
        return {(w.category, os.path.samefile(w.filename, here)) for w in caught}

    def test_of_a_circuit(self, counterexample: Callable[..., Circuit]) -> None:
        circuit = counterexample()
        found = self.lines_of(lambda: circuit.steady_state("algorithm1"))
        assert found == {(SteadyStateWarning, True)}

    @pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential, torch.compiler.disable])
    def test_of_a_layer(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = wrap(that_sometimes_fails("unconstrained"))
        x = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
        assert self.lines_of(lambda: model(x)) == {(SteadyStateWarning, True)}
        rows = x.unsqueeze(1)
        mapped = torch.func.vmap(model)
        assert self.lines_of(lambda: mapped(rows)) == {(SteadyStateWarning, True)}

    def test_of_an_adjoint(
        self, parameters: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(
            problem: Problem, y: Tensor, a: Tensor, g: Tensor, tol: float, precondition: object
        ) -> tuple[Tensor, Tensor]:
            return torch.full_like(g, torch.nan), torch.full_like(g[:, 0], torch.nan)

        monkeypatch.setattr(by_torch, "solve_adjoint_iteratively", broken)
        monkeypatch.setattr(
            by_torch, "solve_adjoint_dense", lambda problem, y, a, g: torch.full_like(g, torch.nan)
        )
        arguments = parameters((3,), 2)
        arguments["input_drive"].requires_grad_()
        state = Circuit(**arguments).steady_state()
        assert self.lines_of(lambda: state.y.sum().backward()) == {(AdjointWarning, True)}
