"""Kernels are used after a self-check on the device, and where the backend allows them."""

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from _kernels import DEVICE, FIRST_ON_CPU, KERNELS, NEXT_BACKEND
from torch import Tensor

from deq_organics import Circuit, ORGaNICsDEQ, singular_value
from deq_organics import self_check as checks
from deq_organics.gated_drive import triton as drive
from deq_organics.parametrizations import SingularValueBound
from deq_organics.steady_state.backends.triton import launch as steady_state
from deq_organics.steady_state.backends.triton import search
from deq_organics.steady_state.backends.triton.self_check import steady_state_failure
from recurrent import ORGaNICsRNN
from recurrent.backends import cuda as sequences

NEXT = "fused" if DEVICE.type == "cuda" else FIRST_ON_CPU
pytestmark = [
    KERNELS,
    # NumPy's word for what a GPU does in silence.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process on a device that kernels can run on: nothing was checked."""
    monkeypatch.setattr(checks, "_RESULTS", {})
    if DEVICE.type == "cpu":
        for module in (search, drive, singular_value, sequences):
            monkeypatch.setattr(module, "kernel_refusal", lambda device: None)


def circuit(n: int = 2, **options: Any) -> Circuit:
    generator = torch.Generator().manual_seed(n)
    d, w = torch.rand(2, 3, n, generator=generator)[0], torch.rand(n, n, generator=generator)
    return Circuit(d.to(DEVICE), 0.5, 0.3 * torch.eye(n, device=DEVICE), w.to(DEVICE), **options)


class _Answers:
    """A check that counts its calls and fails as told."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds, self.calls = error, seconds, 0
        self.seen: dict[str, Any] = {}

    def __call__(self, device: torch.device) -> None:
        self.calls += 1
        time.sleep(self.seconds)
        self.seen = {
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "device": torch.empty(()).device.type,
            "transforms": torch._C._are_functorch_transforms_active(),
        }
        if self.error is not None:
            raise self.error


class TestTheCheck:
    def test_once_for_each_family_device_and_variant(self) -> None:
        check = _Answers()
        for family, variant in [("a", 1), ("a", 1), ("a", 2), ("b", 1), ("b", 1)]:
            assert checks.failure(family, DEVICE, variant, check) is None
        assert checks.failure("a", torch.device("meta"), 1, check) is None
        assert check.calls == 4

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (RuntimeError("out of\n\n  resource"), "RuntimeError: out of resource"),
            (checks.Deviation("y deviates"), "failed: y deviates"),
            (ValueError("x" * 1000), "x" * 200 + "..."),
        ],
    )
    def test_a_failure_is_kept_with_its_reason(self, error: Exception, told: str) -> None:
        check = _Answers(error)
        reasons = {checks.failure("thing", DEVICE, 1, check) for _ in range(3)}
        assert check.calls == 1
        (reason,) = reasons
        assert reason.startswith("this device: the self-check of its thing failed: ")
        assert reason.endswith(told)

    def test_threads_wait_for_one_check(self) -> None:
        check, found = _Answers(RuntimeError("no"), seconds=0.2), []
        threads = [
            threading.Thread(target=lambda: found.append(checks.failure("thing", DEVICE, 1, check)))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert check.calls == 1
        assert len(found) == 5
        assert len(set(found)) == 1

    def test_it_sees_nothing_of_its_caller(self) -> None:
        check, before = _Answers(), torch.get_rng_state()

        def ask(x: Tensor) -> Tensor:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", dtype=torch.bfloat16),
                torch.device("meta"),
            ):
                checks.failure("thing", DEVICE, 1, check)
            return x

        torch.func.vmap(ask)(torch.zeros(2))
        assert check.calls == 1
        assert check.seen == {
            "grad": False,
            "inference": False,
            "autocast": False,
            "device": "cpu",
            "transforms": False,
        }
        assert torch.equal(torch.get_rng_state(), before)

    def test_not_within_a_capture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = _Answers()
        monkeypatch.setattr(checks, "_is_capturing", lambda device: True)
        assert "capturing stream" in checks.failure("thing", DEVICE, 1, check)
        assert check.calls == 0
        monkeypatch.setattr(checks, "_is_capturing", lambda device: False)
        assert checks.failure("thing", DEVICE, 1, check) is None
        monkeypatch.setattr(checks, "_is_capturing", lambda device: True)
        assert checks.failure("thing", DEVICE, 1, check) is None

    @pytest.mark.parametrize("error", [1e-3, float("nan"), float("inf")])
    def test_numbers_that_deviate(self, error: float) -> None:
        exact = torch.ones(2, 3, dtype=torch.float64)
        checks.compare("it", exact.float(), exact, 1e-6)
        with pytest.raises(checks.Deviation, match="it deviates by"):
            checks.compare("it", exact + error, exact, 1e-6)


def _off(launch: Callable[..., Any], factor: float = 1.01) -> Callable[..., Any]:
    """A launch whose first result is wrong by 1 %."""

    def wrong(*arguments: Any, **options: Any) -> tuple[Any, ...]:
        first, *others = launch(*arguments, **options)
        return (first * factor, *others)

    return wrong


def _broken(*arguments: Any, **options: Any) -> NoReturn:
    raise RuntimeError("PassManager::run failed")


def _breakages() -> list[tuple[str, str]]:
    return [("wrong", "deviates by"), ("broken", "RuntimeError: PassManager::run failed")]


class TestTheFamilies:
    """Each is used where it is right; auto leaves a wrong or broken one, and says why."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("kind", "told"), _breakages())
    def test_steady_state(self, kind: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from deq_organics.steady_state.backends.triton import self_check

        solve = self_check.solve  # type: ignore[attr-defined]

        def wrong(*arguments: Any) -> tuple[Any, Any]:
            solution, settled = solve(*arguments)
            return solution._replace(y=1.01 * solution.y), settled

        monkeypatch.setattr(self_check, "solve", wrong if kind == "wrong" else _broken)
        choice = circuit().backend_for()
        assert choice.backend == NEXT_BACKEND
        assert told in choice.reason
        assert "the self-check of its steady-state kernels failed" in choice.reason
        with pytest.raises(RuntimeError, match=f"backend: got 'cuda', .*{told}"):
            circuit().steady_state(backend="cuda")
        expected = circuit().steady_state(backend=choice.backend)
        assert torch.equal(circuit().steady_state().y, expected.y)

    @pytest.mark.slow
    @pytest.mark.parametrize(("kind", "told"), _breakages())
    def test_the_adjoint_counts_where_gradients_are_asked(
        self, kind: str, told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deq_organics.steady_state.backends.triton import self_check

        monkeypatch.setattr(
            self_check,
            "solve_adjoint",
            (lambda *a: (r := steady_state.solve_adjoint(*a))._replace(y=1.01 * r.y))
            if kind == "wrong"
            else _broken,
        )
        plain = circuit()
        assert plain.backend_for().backend == "cuda"
        plain.input_drive.requires_grad_()
        choice = plain.backend_for()
        assert choice.backend == NEXT_BACKEND
        assert "the self-check of its adjoint kernels failed" in choice.reason
        assert told in choice.reason
        with torch.no_grad():
            assert plain.backend_for().backend == "cuda"

    @pytest.mark.parametrize(("kind", "told"), _breakages())
    def test_bound(self, kind: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
        launch = singular_value._launch
        wrong = _off(launch) if kind == "wrong" else _broken
        monkeypatch.setattr(singular_value, "_launch", wrong)
        weight = 2.0 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        bound = SingularValueBound()
        assert told in bound.backend_for(weight).reason
        assert torch.equal(bound(weight), SingularValueBound(backend="torch")(weight))
        with pytest.raises(RuntimeError, match=f"for the singular-value bound|{told}"):
            SingularValueBound(backend="cuda")(weight)

    @pytest.mark.parametrize("wrong", ["forward", "backward"])
    def test_drive(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(drive, wrong)
        if wrong == "backward":
            monkeypatch.setattr(drive, wrong, _off(right))
        else:
            monkeypatch.setattr(drive, wrong, lambda *parts: 1.01 * right(*parts))
        # With the exponent 3 torch solves, so that no other kernel is checked.
        layer, x = ORGaNICsDEQ(3, 2, exponent=3.0, device=DEVICE), torch.rand(2, 3, device=DEVICE)
        reason = layer.backend_for(x).reason
        assert f"its input drive by {NEXT_BACKEND}" in reason
        assert "the self-check of its gated drive failed" in reason
        insisting = ORGaNICsDEQ(3, 2, device=DEVICE, backend="cuda")
        with pytest.raises(RuntimeError, match="for the input drive"):
            insisting(x)

    @pytest.mark.slow
    @pytest.mark.parametrize("wrong", ["run_forward", "run_backward"])
    @pytest.mark.parametrize(("kind", "told"), _breakages())
    def test_sequences(
        self, wrong: str, kind: str, told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from recurrent.backends.cuda import passes

        right = getattr(passes, wrong)

        def off(*arguments: Any) -> Any:
            found = right(*arguments)
            if wrong == "run_forward":
                return found._replace(y=1.01 * found.y)
            return (1.01 * found[0], *found[1:])

        monkeypatch.setattr(passes, wrong, off if kind == "wrong" else _broken)
        rnn, x = ORGaNICsRNN(2, 1, device=DEVICE), torch.rand(2, 2, 2, device=DEVICE)
        choice = rnn.backend_for(x)
        assert choice.backend.name == NEXT
        assert "the self-check of its sequence kernels failed" in choice.reason
        assert told in choice.reason
        rnn.backend = "cuda"
        with pytest.raises(RuntimeError, match=f"backend: got 'cuda', .*{told}"):
            rnn(x)
        with torch.no_grad():
            rnn.backend = "auto"
            forward_only = rnn.backend_for(x).backend.name
        assert forward_only == (NEXT if wrong == "run_forward" else "cuda")


class TestRightKernels:
    """Under the interpreter they are right, and pass."""

    @pytest.mark.slow
    @pytest.mark.parametrize(("n", "rectified"), [(1, False), (5, True), (17, False)])
    def test_steady_state(self, n: int, rectified: bool) -> None:
        one = torch.zeros(1, n, device=DEVICE)
        assert steady_state_failure(one, rectified, differentiated=True) is None

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, 2, 16, 33])
    def test_parts(self, n: int) -> None:
        assert drive.self_check(torch.zeros(1, n, device=DEVICE)) is None
        assert singular_value.self_check(torch.zeros(n, n, device=DEVICE)) is None

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("n", "options"),
        [
            (1, {}),
            (3, {"recurrence": "identity", "rectified": False}),
            (5, {"input_gain": "fixed", "rectifier": "after_weights"}),
        ],
    )
    def test_sequences(self, n: int, options: dict[str, Any]) -> None:
        rnn = ORGaNICsRNN(2, n, device=DEVICE, **options)
        choice = rnn.backend_for(torch.rand(2, 3, 2, device=DEVICE))
        assert (choice.backend.name, choice.reason) == ("cuda", "first choice")

    def test_variants_are_checked_by_themselves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, keys = torch.rand(2, 4, 2, device=DEVICE), checks._RESULTS
        monkeypatch.setattr(checks, "_run", lambda family, device, check: None)
        first = ORGaNICsRNN(2, 2, device=DEVICE)
        first.backend_for(x)
        first.backend_for(torch.rand(7, 8, 2, device=DEVICE))
        assert len(keys) == 1
        with torch.no_grad():
            first.backend_for(x)
        ORGaNICsRNN(2, 3, device=DEVICE).backend_for(x)
        assert len(keys) == 3


def _forbid_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every way to a kernel raise."""

    def launched(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(singular_value, "_launch", launched)
    monkeypatch.setattr(drive, "_launch", launched)
    monkeypatch.setattr(steady_state, "_kernels", launched)
    monkeypatch.setattr("recurrent.backends.cuda.passes.run_forward", launched)


class TestNamedBackends:
    @pytest.mark.parametrize("recurrence", ["spectral", "unconstrained", "identity"])
    def test_torch_launches_nothing(self, recurrence: str, monkeypatch: pytest.MonkeyPatch) -> None:
        _forbid_launches(monkeypatch)
        built = ORGaNICsDEQ(3, 4, recurrence, device=DEVICE, backend="torch")
        switched = ORGaNICsDEQ(3, 4, recurrence, device=DEVICE)
        switched.backend = "torch"
        x = torch.rand(2, 3, device=DEVICE, requires_grad=True)
        for layer in (built, switched):
            if recurrence == "spectral":
                with torch.no_grad():
                    layer.parametrizations.recurrent_weight.original.mul_(3.0)
            layer(x).sum().backward()
            layer.circuit(x)
            assert layer.recurrent_weight is None or layer.recurrent_weight.shape == (4, 4)
            assert layer.backend_for(x) == ("torch", "named")
        assert not checks._RESULTS

    @pytest.mark.parametrize("name", ["reference", "fused"])
    @pytest.mark.parametrize("recurrence", ["spectral", "unconstrained"])
    def test_sequences_without_kernels_launch_nothing(
        self, name: str, recurrence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _forbid_launches(monkeypatch)
        x = torch.rand(2, 2, 3, device=DEVICE, requires_grad=True)
        built = ORGaNICsRNN(3, 4, 2, recurrence=recurrence, backend=name, device=DEVICE)
        switched = ORGaNICsRNN(3, 4, 2, recurrence=recurrence, device=DEVICE)
        switched.backend = name
        for rnn in (built, switched):
            rnn(x)[0].sum().backward()
            choice = rnn.backend_for(x)
            assert (choice.backend.name, choice.reason) == (name, "named")
        assert not checks._RESULTS

    @pytest.mark.slow
    def test_auto_launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernels that the tests above forbid are those that would run."""
        calls: Any = []
        for module, name in ((singular_value, "_launch"), (drive, "_launch")):
            launch = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *a, launch=launch: calls.append(launch) or launch(*a)
            )
        ORGaNICsDEQ(3, 2, device=DEVICE)(torch.rand(2, 3, device=DEVICE))
        assert len(set(calls)) == 2

    @pytest.mark.slow
    def test_backend_for_tells_of_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.rand(2, 3, device=DEVICE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            choice = ORGaNICsDEQ(3, 2, exponent=3.0, device=DEVICE).backend_for(x)
        assert choice.backend == "torch"
        assert "cuda does not support the exponent 3, only 2" in choice.reason
        assert "its input drive by cuda (first choice)" in choice.reason
        assert "its singular-value bound by cuda (first choice)" in choice.reason
        assert ORGaNICsDEQ(3, 2, device=DEVICE).backend_for(x) == ("cuda", "first choice")

    @pytest.mark.slow
    def test_backend_for_tells_of_a_bound_too_large_for_its_kernel(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(singular_value, "_LARGEST_SIZE", 1)
        rnn = ORGaNICsRNN(3, 2, recurrence="spectral", device=DEVICE)
        choice = rnn.backend_for(torch.rand(2, 2, 3, device=DEVICE))
        assert choice.backend.name == "cuda"
        assert "its singular-value bound by torch (cuda does not support 2 neurons" in choice.reason

    def test_a_backend_assigned_later_is_checked(self) -> None:
        layer = ORGaNICsDEQ(3, 2)
        with pytest.raises(ValueError, match="backend: got 'fast', expected one of"):
            layer.backend = "fast"
        rnn = ORGaNICsRNN(3, 2)
        with pytest.raises(ValueError, match="backend: got 'torch', expected one of"):
            rnn.backend = "torch"
