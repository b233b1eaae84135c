"""What the benchmarks are built from: clocks, races, floors, bars, accuracy, reports."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.accuracy import Probe, derivatives, errors, exact
from harness.bars import Bar, bar_table
from harness.floor import Rates, Work, measure_rates, sequence_work, static_work
from harness.graphs import capture
from harness.race import Attempt, Contender, Pace, Step, Times, gradient_step, race
from harness.report import RESULTS, Report, results_file
from harness.timing import EventClock, HostClock, clock_for
from recurrent import ORGaNICsRNN
from sequence import bars


class FakeClock:
    """Ten seconds pass at every mark."""

    now = 0.0

    def mark(self) -> float:
        self.now += 10.0
        return self.now

    laps = HostClock.laps


def no_step(x: Tensor) -> Step:
    return Step(lambda: x, lambda result: None)


def attempt_with(failures: list[str]) -> Attempt:
    """An ``attempt`` that lists what failed."""

    def attempt(what: str, action: Callable[..., Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:
            failures.append(f"{what}: {error}")
            return None

    return attempt


def run_race(*contenders: Contender, rounds: int = 6) -> tuple[dict[str, Times], list[str]]:
    failures: list[str] = []
    pace = Pace(rounds, fewest=3)
    x = torch.zeros(1)
    attempt = attempt_with(failures)
    return race(contenders, x, FakeClock(), pace, attempt, "race", 0), failures


def test_clock_of_a_device() -> None:
    assert isinstance(clock_for("cpu"), HostClock)
    assert isinstance(clock_for("cuda:0"), EventClock)


def test_laps_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        times = iter((1.0, 3.0, 7.0))

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.milliseconds = next(self.times)

        def synchronize(self) -> None:
            self.synchronized = True

        def elapsed_time(self, later: "Event") -> float:
            return later.milliseconds - self.milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = EventClock()
    marks = [clock.mark() for _ in range(3)]
    assert clock.laps(marks) == pytest.approx([2e-3, 4e-3])
    assert marks[-1].synchronized  # type: ignore[attr-defined]


def test_halves_and_calls_of_a_timing() -> None:
    times, failures = run_race(Contender("slow", no_step))
    assert failures == []
    # Two laps of ten seconds: forward is the first. Too slow for six rounds: the fewest.
    assert times["slow"].forward == [10.0] * 3
    assert times["slow"].total == [20.0] * 3
    assert Pace(30).calls(0.004) == 3
    assert Pace(30, seconds=10.0).rounds_of(0.001) == 30
    assert Pace(30, fewest=5, seconds=10.0).rounds_of(2.5) == 5
    assert Pace(2, fewest=5).rounds_of(2.5) == 2


def test_contender_that_fails_to_start_or_on_the_way() -> None:
    def refuse(x: Tensor) -> Step:
        raise RuntimeError("no such thing")

    calls = iter(range(100))

    def tire() -> None:
        if next(calls) > 3:
            raise RuntimeError("out of memory")

    times, failures = run_race(
        Contender("refuses", refuse),
        Contender("tires", lambda x: Step(tire, lambda result: None)),
        Contender("runs", no_step),
    )
    assert times.keys() == {"tires", "runs"}
    # Two calls to warm up, two in the first round, none in the second.
    assert len(times["tires"].total) == 1
    assert len(times["runs"].total) == 3
    assert sorted(failures) == ["race: refuses: no such thing", "race: tires: out of memory"]


def test_graph_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="CUDA graphs need a CUDA device"):
        capture(no_step(torch.zeros(1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_graph_computes_what_was_captured() -> None:
    weight = torch.rand(4, device="cuda", requires_grad=True)
    x = torch.rand(4, device="cuda")
    step = gradient_step(lambda: weight.square() * x, torch.ones_like(x), [weight])
    eager = step.backward(step.forward())[0].clone()
    found = []

    def backward(loss: Tensor) -> None:
        found.extend(step.backward(loss))

    graphed = capture(Step(step.forward, backward))
    found[-1].zero_()
    graphed.backward(graphed.forward())
    assert torch.equal(found[-1], eager)


def test_work() -> None:
    # The figure that the paper's larger model is known by: 118 GFLOP.
    work = sequence_work(n=128, batch=256, steps=784, inputs=1)
    assert work.operations == pytest.approx(118e9, rel=0.01)
    assert work.bytes == 4 * 256 * 784 * (2 + 10 * 128)
    small = static_work(n=2, batch=3, inputs=5, iterations=7)
    assert small.operations == 2 * 3 * (2 * 5 * 4 * 7 + 2 * 4 + 6 * 2 * 5)
    assert small.bytes == 4 * 2 * (2 * 4 + 2 * 10 + (5 + 2) * 3)


def test_floor_is_the_larger_of_two_times() -> None:
    rates = Rates(bytes=10.0, operations={"highest": 1.0, "high": 6.0, "medium": 1e3})
    # Three products in TF32 are faster than one in float32; the last is bound by memory.
    assert Work(12.0, 5.0).floors(rates) == {"highest": 6.0, "high": 2.0, "medium": 0.5}
    assert Work(12.0, 5.0).floors(Rates(10.0, {"highest": 1.0})) == {"highest": 12.0}


@pytest.mark.slow
def test_rates_of_this_machine() -> None:
    rates = measure_rates("cpu")
    assert rates.bytes > 1e8
    assert list(rates.operations) == ["highest"]
    assert rates.operations["highest"] > 1e8


def test_verdicts() -> None:
    verdicts = {
        Bar("time", "at most", 8.0, 8.0): "met",
        Bar("time", "at most", 8.0, 8.1): "missed",
        Bar("ratio", "at least", 60.0, 61.0): "met",
        Bar("ratio", "at least", 60.0, 59.0): "missed",
        Bar("error", "at most", 1.0, float("nan")): "missed",
        Bar("error", "at most", 1.0, None): "not measured",
    }
    assert [bar.verdict for bar in verdicts] == list(verdicts.values())
    assert "at most 8" in bar_table(list(verdicts))


def test_bars_of_sequences_follow_from_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = {
        "auto": {"milliseconds": 7.0, "output_error": 1e-6, "gradient_error": 2e-4},
        "nn.LSTM": {"ratio": 0.8},
        "published": {},
    }
    result = {"units": 128, "steps": 784, "batch": 256, "contenders": contenders}
    found = {bar.name: (bar.measured, bar.verdict) for bar in bars([result], on_gpu=True)}
    assert found == {
        "128 units: ms": (7.0, "met"),
        "128 units: time over nn.LSTM's": (1.25, "missed"),
        "128 units: published over ours": (None, "not measured"),
        "128 units: error of outputs": (1e-6, "met"),
        "128 units: error of the worst gradient": (2e-4, "missed"),
    }
    # On a CPU ratios count, on one thread.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert len(bars([result], on_gpu=False)) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = {bar.name: (bar.measured, bar.verdict) for bar in bars([result], on_gpu=False)}
    assert found["128 units, 784 steps: time over nn.LSTM's"] == (1.25, "missed")
    assert found["128 units, 784 steps: time over fused's"] == (None, "not measured")
    assert len(bars([{**result, "steps": 98}], on_gpu=True)) == 2


def test_errors_are_found_where_they_are() -> None:
    torch.manual_seed(0)
    rnn = ORGaNICsRNN(1, 4)
    probe = Probe.draw(rnn, steps=6, batch=2, seed=1)
    truth = exact(rnn, probe)
    found = derivatives(rnn, probe)
    right = errors(found, truth)
    assert right.outputs < 1e-6
    assert right.worst_gradient[1] < 1e-5
    assert len(right.gradients) == len(list(rnn.parameters())) + 5
    found[0]["output"][3, 1, 2] += 1.0
    found[1]["gain_weight_a"][0, 0] = float("nan")
    wrong = errors(found, truth)
    assert wrong.outputs > 1e-2
    assert wrong.worst_gradient[0] == "gain_weight_a"


@dataclass
class Options:
    out: Path | None
    device: str = "cpu"
    published: Path | None = None


def test_report_is_written_as_it_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("trial", Options(tmp_path / "deep" / "report.json"))
    report.add(part=1)
    assert json.loads(report.path.read_text())["part"] == 1
    assert report.attempt("good", lambda: 5) == 5

    def fail() -> None:
        raise ValueError("too large\nand more")

    assert report.attempt("bad", fail) is None
    assert report.close() == 1
    record = json.loads(report.path.read_text())
    assert record["failures"] == {"bad": "ValueError: too large\nand more"}
    assert record["options"] == {"device": "cpu"}
    assert "FAILED bad: ValueError: too large\n" in capsys.readouterr().out
    assert Report("trial", Options(None)).close() == 0


def test_figures_of_a_gpu_are_kept_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    expected = RESULTS / "sequence-nvidia-h100-80gb-hbm3.json"
    assert results_file("sequence", "cuda") == expected
    assert results_file("sequence", "cpu") is None
