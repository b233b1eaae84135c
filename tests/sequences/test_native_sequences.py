"""The C kernels of sequences: their numbers, their threads, and why they are not taken."""

import multiprocessing
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch
from _derivatives import outputs_and_gradients
from _kernels import NATIVE

from deq_organics import self_check
from deq_organics.native import library
from deq_organics.native import shared_library as loading
from deq_organics.native import threads as spreading
from recurrent import ORGaNICsRNN, State
from recurrent.backends import SequenceWork, choose
from recurrent.backends.native import passes

FAST: dict[str, Any] = {"max_step_y": 0.3, "max_step_a": 0.2, "max_step_b": 0.4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rectifier": "after_weights"},
    {"rectified": False},
    {"recurrence": "identity"},
    {"recurrence": "bounded"},
    {"recurrence": "identity", "rectifier": "after_weights", "input_gain": "fixed"},
    {"input_gain": "fixed"},
    {"num_layers": 2, "learn_time_constants": False},
]


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.detach().double() - exact).norm() / exact.norm().clamp_min(1e-30))


def check(rnn: ORGaNICsRNN, steps: int, batch: int) -> None:
    """Outputs and gradients against float64: to rounding, or as near as the cell in float32.

    A rectifier that rounding switches moves a gradient by more than rounding does.
    """
    layers, n = rnn.num_layers, rnn.hidden_size
    x = torch.rand(steps, batch, rnn.input_size)
    state = State(torch.randn(layers, batch, n), *(0.1 + torch.rand(3, layers, batch, n)))
    weights = [torch.randn(steps, batch, n), *torch.randn(4, layers, batch, n)]
    exact, known = outputs_and_gradients(rnn, "reference", x, state, weights, torch.float64)
    exact = [part.detach() for part in exact]
    rnn.float()
    found = {
        name: outputs_and_gradients(rnn, name, x, state, weights)
        for name in ("native", "reference")
    }
    for value, other, truth in zip(found["native"][0], found["reference"][0], exact, strict=True):
        assert relative(value, truth) <= max(2e-6, 4 * relative(other, truth))
    for name, truth in known.items():
        got, single = (found[backend][1][name] for backend in ("native", "reference"))
        if truth.norm() == 0:
            assert got.norm() == 0, name
        else:
            assert relative(got, truth) <= max(2e-5, 4 * relative(single, truth)), name


@NATIVE
class TestNumbers:
    @pytest.mark.parametrize("options", VARIANTS)
    # One neuron and one sample, a vector, a panel, a tile, and one on either side of them.
    @pytest.mark.parametrize(
        ("inputs", "n", "steps", "batch"),
        [
            (1, 1, 1, 1),
            (17, 16, 3, 25),
            *(
                pytest.param(*sizes, marks=pytest.mark.slow)
                for sizes in ((3, 8, 2, 5), (2, 15, 7, 24), (1, 33, 5, 49))
            ),
        ],
    )
    def test_they_are_those_of_the_cell(
        self, options: dict[str, Any], inputs: int, n: int, steps: int, batch: int
    ) -> None:
        check(ORGaNICsRNN(inputs, n, **FAST, **options), steps, batch)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(12))
    def test_random_sizes(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        inputs, n, steps, batch = (
            int(torch.randint(1, most, (), generator=generator)) for most in (40, 140, 12, 90)
        )
        options = VARIANTS[seed % len(VARIANTS)]
        check(ORGaNICsRNN(inputs, n, **FAST, **options), steps, batch)

    @pytest.mark.slow
    @pytest.mark.parametrize("options", VARIANTS[:3])
    def test_long_sequences(self, options: dict[str, Any]) -> None:
        check(ORGaNICsRNN(1, 20, **options), 784, 6)

    @pytest.mark.parametrize("segment", [1, 2, 5, 100])
    def test_segments(self, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(passes, "GRADIENT_ROWS", segment * passes.TILE)
        check(ORGaNICsRNN(2, 9, **FAST), 11, 30)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        rnn, x = ORGaNICsRNN(2, 21, backend="native"), torch.rand(9, 61, 2)
        state = rnn.draw_state(61)
        whole, last = rnn(x, state)
        for rows in ([0], [60], [3, 30, 50], list(range(10, 47))):
            part, ends = rnn(x[:, rows], State(*(tensor[:, rows] for tensor in state)))
            assert torch.equal(part, whole[:, rows])
            assert all(torch.equal(a, b[:, rows]) for a, b in zip(ends, last, strict=True))

    def test_the_instructions_of_other_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The portable kernels run everywhere."""
        handle = library().handle
        portable = loading.Library(handle, "portable", 4)
        monkeypatch.setattr("deq_organics.native.calls.library", lambda: portable)
        for options in VARIANTS:
            check(ORGaNICsRNN(3, 13, **FAST, **options), 6, 29)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
    @pytest.mark.parametrize("where", range(4))
    def test_what_is_not_finite_stays_in_its_sample(self, value: float, where: int) -> None:
        """And is told: it neither vanishes nor spreads."""
        rnn, x = ORGaNICsRNN(1, 10, backend="native"), torch.rand(6, 30, 1)
        state = rnn.rest_state(30)
        fine, _ = rnn(x, state)
        parts = [part.clone() for part in state]
        parts[where][0, 7, 3] = value
        cell: Any = rnn.cells[0]
        first = State(*(part[0] for part in parts))
        sequence = SequenceWork(cell.model, cell.parameters_of_step(), x, first)
        outputs = {
            name: choose(name, sequence).backend.run(sequence)[0] for name in ("native", "fused")
        }
        others = [i for i in range(30) if i != 7]
        assert torch.equal(outputs["native"][:, others], fine[:, others])
        assert torch.equal(outputs["native"][:, 7].isfinite(), outputs["fused"][:, 7].isfinite())


@NATIVE
class TestThreads:
    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_any_number_of_them(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
        monkeypatch.setattr(passes, "_WORTH_A_THREAD", 1)
        check(ORGaNICsRNN(2, 9, **FAST), 4, 50)
        check(ORGaNICsRNN(2, 9, **FAST), 4, 2)

    def test_the_same_number_gives_the_same_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(passes, "_WORTH_A_THREAD", 1)
        rnn, x = ORGaNICsRNN(2, 30, backend="native"), torch.rand(7, 64, 2)

        def gradients() -> list[torch.Tensor]:
            return list(torch.autograd.grad(rnn(x)[0].square().sum(), list(rnn.parameters())))

        first = gradients()
        for _ in range(5):
            assert all(map(torch.equal, gradients(), first))

    def test_threads_of_the_program(self) -> None:
        rnn, x = ORGaNICsRNN(2, 30, backend="native"), torch.rand(7, 64, 2)
        expected, results = rnn(x)[0], [torch.empty(0)] * 8

        def run(index: int) -> None:
            results[index] = rnn(x)[0]

        threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(result, expected) for result in results)

    @pytest.mark.slow
    def test_a_forked_process(self) -> None:
        rnn, x = ORGaNICsRNN(2, 30, backend="native"), torch.rand(7, 64, 2)
        expected = rnn(x)[0].detach()
        context = multiprocessing.get_context("fork")
        parent, child = context.Pipe()
        process = context.Process(target=lambda: child.send(rnn(x)[0].detach().tolist()))
        process.start()
        assert parent.poll(60)
        assert torch.equal(torch.tensor(parent.recv()), expected)
        process.join(60)

    def test_an_error_of_a_part_is_raised(self) -> None:
        def call(part: int, first: int, last: int) -> int:
            if part == 1:
                raise ValueError("part 1")
            return 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 2)
            with pytest.raises(ValueError, match="part 1"):
                spreading.spread(call, 4, 2)
            with pytest.raises(MemoryError, match="4 rows in 2 threads"):
                spreading.spread(lambda part, first, last: part, 4, 2)


class TestTheLibrary:
    """Where it is missing, `auto` takes the next backend and says why."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(loading, "_FOLDER", tmp_path)
        return tmp_path

    def refused(self) -> str:
        rnn, x = ORGaNICsRNN(2, 3), torch.rand(4, 1, 2)
        choice = rnn.backend_for(x)
        assert choice.backend.name == "fused"
        assert torch.isfinite(rnn(x)[0]).all()
        rnn.backend = "native"
        with pytest.raises(RuntimeError, match="backend: got 'native', which does not support"):
            rnn(x)
        return choice.reason

    def test_not_compiled(self, elsewhere: Path) -> None:
        assert "native does not support this installation: no compiled library" in self.refused()

    def test_not_a_library(self, elsewhere: Path) -> None:
        (elsewhere / f"_kernels{EXTENSION_SUFFIXES[0]}").write_bytes(b"text")
        assert "its compiled library cannot be loaded" in self.refused()

    @NATIVE
    def test_of_other_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled, elsewhere = Path(library().handle._name).read_bytes(), tmp_path
        monkeypatch.setattr(loading, "_FOLDER", elsewhere)
        name = f"_kernels{EXTENSION_SUFFIXES[0]}"
        (elsewhere / name).write_bytes(compiled)
        source = elsewhere / "source"
        source.mkdir()
        (source / "one.c").write_text("int x;")
        assert "its compiled library is of other sources" in self.refused()

    @NATIVE
    def test_wrong_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = passes.NativePasses.forward

        def wrong(*arguments: Any) -> Any:
            found = right(*arguments)
            return found._replace(y=1.01 * found.y)

        monkeypatch.setattr(self_check, "_RESULTS", {})
        monkeypatch.setattr(passes.NativePasses, "forward", wrong)
        assert "the self-check of its native sequence kernels failed" in self.refused()

    @NATIVE
    def test_it_has_every_function(self) -> None:
        found = library()
        for name in ("sequence_forward", "sequence_adjoint"):
            for instructions in {found.instructions, "portable"}:
                function = getattr(found.handle, f"organics_{name}_{instructions}")
                assert callable(function)
