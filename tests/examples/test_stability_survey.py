"""The survey of Conjecture 5.3: its verdicts, its files, and the search by gradient."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stability_survey
from deq_organics import Circuit, fixed_points_2d
from survey import conditions, counterexamples
from survey.conditions import Condition
from survey.counterexamples import FAMILIES, Family
from survey.report import interval
from survey.verdicts import Verdict, classify

DOUBLE = torch.float64
SCRIPT = Path(stability_survey.__file__)


@pytest.fixture
def run_survey(
    run_main: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str]]:
    return functools.partial(run_main, stability_survey.main)


@pytest.mark.slow
def test_the_known_counterexample() -> None:
    """n = 1, wr = -1, d = w = 1, c = 1/2 has a fixed point, but no stable one."""
    one = torch.ones(2, 1, dtype=DOUBLE)
    circuit = Circuit(one, 0.5, -one[:1], one[:1])
    assert classify(circuit).tolist() == [Verdict.UNSTABLE] * 2


@pytest.mark.slow
@pytest.mark.parametrize("singular_value", [1.0, 2.0])
def test_verdicts_with_one_neuron_are_those_of_the_theory(singular_value: float) -> None:
    """For n = 1 all fixed points are known in closed form."""
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(5_000, *shape, generator=generator, dtype=DOUBLE)

    wr = singular_value * (2 * uniform(1, 1) - 1)
    circuit = Circuit(2 * uniform(1) - 1, uniform(1), wr, 2 * uniform(1, 1))
    expected = fixed_points_2d(circuit).stable.any(-1)
    verdict = classify(circuit)
    assert torch.equal(verdict == Verdict.STABLE, expected)
    assert (verdict[~expected] == Verdict.UNSTABLE).all()
    assert 100 < int((~expected).sum()) < 2_000


@pytest.mark.slow
def test_no_steady_state() -> None:
    """Without recurrence and with w d^2 > 1 there is no fixed point: a grows without end."""
    zero = torch.zeros(2, 1, 1, dtype=DOUBLE)
    circuit = Circuit(torch.ones(2, 1, dtype=DOUBLE), 0.5, zero, zero + 4.0)
    assert classify(circuit).tolist() == [Verdict.NO_STEADY_STATE] * 2


@pytest.mark.slow
def test_a_circuit_that_is_hard_to_explain_has_an_unstable_fixed_point() -> None:
    """Found by least squares where Newton's method from trajectories finds nothing."""
    circuit = Condition(10, "positive definite", 3.0).draw(500, 1)
    verdict = classify(circuit)
    assert int((verdict == Verdict.UNSTABLE).sum()) > 20
    assert int((verdict == Verdict.UNDECIDED).sum()) <= 1


@pytest.mark.parametrize("weights", conditions.WEIGHTS)
def test_conditions_draw_what_they_say(weights: conditions.Weights) -> None:
    circuit = Condition(4, weights, 1.5, 0.3, 0.1).draw(50, 0)
    wr = circuit.recurrent_weight
    torch.testing.assert_close(torch.linalg.matrix_norm(wr, 2), torch.full((50,), 1.5).double())
    if weights in ("symmetric", "positive definite"):
        torch.testing.assert_close(wr, wr.mT)
    if weights == "positive definite":
        assert (torch.linalg.eigvalsh(wr) > 0).all()
    if weights == "nonnegative":
        assert (wr >= 0).all()
    assert (circuit.input_drive.norm(dim=-1) < 0.3).all()
    assert (circuit.inhibitory_drive < 0.01).all()


@pytest.mark.slow
def test_survey_and_resume(run_survey: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A survey that lost blocks is completed to the same counts."""
    arguments = ("--sizes", 1, "--circuits", 5, "--out", tmp_path / "a")
    status, output, errors = run_survey(*arguments)
    assert (status, "error" in errors) == (0, False)
    assert "80 circuits" in output
    assert (tmp_path / "a" / "stability_survey.png").stat().st_size > 10_000
    before = (tmp_path / "a" / "results.json").read_bytes()
    blocks = sorted((tmp_path / "a").glob("n*.json"))
    assert len(blocks) == 16
    for path in blocks[::3]:
        path.unlink()
    status, output, _ = run_survey(*arguments, "--resume")
    assert status == 0
    assert "6 of 16 blocks" in output
    assert (tmp_path / "a" / "results.json").read_bytes() == before
    counts = json.loads(before)["conditions"]
    assert sum(cell[str(kind)] for cell in counts for kind in Verdict) == 80


@pytest.mark.slow
def test_two_processes_count_the_same(
    run_survey: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, *_ = run_survey("--sizes", 2, "--circuits", 2, "--out", tmp_path / "one")
    assert status == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [str(SCRIPT), "--sizes", "2", "--circuits", "2", "--device", "cpu", "--out"]
    subprocess.run(
        [*command, str(tmp_path / "two")],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    results = [tmp_path / name / "results.json" for name in ("one", "two")]
    assert results[0].read_bytes() == results[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", 0), "--sizes is 0; expected 1 at least"),
        (("--sizes", 2, 2), "--sizes must be one or more numbers, each once"),
        (("--circuits", 0), "--circuits is 0; expected 1 at least"),
        (("--seed", -1), "--seed is -1; expected 0 at least"),
        (("--search", "--resume"), "--resume has no meaning with --search"),
        (("--resume", "--out", "nowhere"), "nowhere/survey.json cannot be read"),
    ],
)
def test_refusals(
    run_survey: Callable[..., tuple[int, str, str]], arguments: tuple[Any, ...], message: str
) -> None:
    status, _, errors = run_survey(*arguments)
    assert status == 2
    assert message in errors
    assert not Path("runs").exists()


@pytest.mark.slow
def test_an_existing_folder_and_another_survey_are_refused(
    run_survey: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    arguments = ("--sizes", 1, "--circuits", 5, "--out", tmp_path / "a")
    assert run_survey(*arguments)[0] == 0
    status, _, errors = run_survey(*arguments)
    assert (status, "error: --out" in errors) == (2, True)
    status, _, errors = run_survey(*arguments, "--seed", 1, "--resume")
    assert (status, "holds the survey" in errors) == (2, True)
    next((tmp_path / "a").glob("n1-*.json")).write_text('{"cond')
    status, _, errors = run_survey(*arguments, "--resume")
    assert (status, "cannot be read" in errors) == (2, True)


@pytest.mark.parametrize(("successes", "total"), [(0, 100), (3, 50), (50, 50), (999, 1000)])
def test_intervals(successes: int, total: int) -> None:
    """At Wilson's limits the observed share lies 1.96 standard deviations away."""
    for limit in interval(successes, total):
        if 0 < limit < 1:
            deviation = abs(successes / total - limit)
            assert deviation == pytest.approx(1.959964 * (limit * (1 - limit) / total) ** 0.5)
    low, high = interval(successes, total)
    assert low <= successes / total <= high


class TestGradientSearch:
    @pytest.mark.parametrize("family", FAMILIES, ids=str)
    def test_circuits_are_of_their_family(self, family: Family) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("z", "b", "c", "tau_y", "tau_a", "eigenvalues"), (4,)
        )
        shapes |= dict.fromkeys(("wr", "w", "mix"), (4, 4))
        raw = {
            name: 2 * torch.randn(30, *shape, generator=generator, dtype=DOUBLE)
            for name, shape in shapes.items()
        }
        circuit = family.circuits(raw)
        wr, d = circuit.recurrent_weight, circuit.input_drive
        torch.testing.assert_close(torch.linalg.matrix_norm(wr, 2), torch.ones(30, dtype=DOUBLE))
        if "symmetric positive" in family.weights or family.weights == "symmetric":
            torch.testing.assert_close(wr, wr.mT)
        if "positive definite" in family.weights:
            assert (torch.linalg.eigvalsh(wr + wr.mT) > 0).all()
        if family.weights == "nonnegative":
            assert (wr >= 0).all()
        if family.nonnegative_input:
            assert (d >= 0).all()
        assert (d.norm(dim=-1) <= 1).all()
        largest = circuit.normalization_weight.amax((-1, -2)) * d.square().sum(-1)
        size = circuit.inhibitory_drive.amax(-1) + largest
        assert bool((size <= 1 + 1e-12).all()) or not family.bounded
        assert circuit.rectified == family.rectified
        assert bool((circuit.tau_y == 1).all()) != family.free_times

    @pytest.mark.slow
    def test_it_finds_counterexamples_with_one_neuron_and_none_where_none_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For n = 1 the theory knows: negative wr has some, nonnegative wr and bounds have none."""
        monkeypatch.setattr(counterexamples, "CANDIDATES", 20)
        monkeypatch.setattr(counterexamples, "STEPS", 60)
        free = counterexamples.search(Family("free"), 1, 0)
        assert free.counterexamples > 0
        example = free.example
        tensors: dict[str, Any] = {
            name: torch.tensor(example[name], dtype=DOUBLE) for name in example
        }
        circuit = Circuit(**tensors)
        assert not fixed_points_2d(circuit).stable.any()
        for family in (Family("nonnegative"), Family("free", bounded=True)):
            assert counterexamples.search(family, 1, 0).counterexamples == 0

    def test_the_gradient_is_that_of_the_steady_state(self) -> None:
        """Following a fixed point by Newton's method keeps its derivative."""
        parameters = Condition(3, "free", 1.0).draw(4, 0).flatten()
        drive = parameters.input_drive.clone().requires_grad_()
        circuit = Circuit(drive, *parameters[1:])
        state = circuit.steady_state(tol=1e-12)
        with torch.no_grad():
            start = state.y + 1e-3, state.a
        y, a, exists = counterexamples._follow(circuit, *start)
        assert exists.all()
        for found, expected in ((y, state.y), (a, state.a)):
            torch.testing.assert_close(found, expected)
            gradients = [
                torch.autograd.grad(value.square().sum(), drive, retain_graph=True)[0]
                for value in (found, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)

    @pytest.mark.slow
    def test_command(
        self,
        run_survey: Callable[..., tuple[int, str, str]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(counterexamples, "CANDIDATES", 4)
        monkeypatch.setattr(counterexamples, "STEPS", 5)
        status, *_ = run_survey("--search", "--sizes", 1, "--out", tmp_path / "search")
        assert status == 0
        content = json.loads((tmp_path / "search" / "results.json").read_text())
        assert len(content["searches"]) == len(FAMILIES)
