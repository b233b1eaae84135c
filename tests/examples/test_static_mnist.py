"""The command line of static_mnist.py, from its options to its files."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _runs import rewrite

import static_mnist
from deq_organics import ORGaNICsDEQ
from mnist.data import Images
from mnist.experiment import load_model
from mnist.static_model import FEW_IMAGES_RECIPE, Classifier
from mnist.static_task import StaticTask
from mnist.weights import load_weights

Run = Callable[..., tuple[int, str, str]]
MODELS = ["80:80", "50:50", "two-layer", "mlp-50"]


@pytest.fixture
def finished(finished_run: Callable[[str], Path]) -> Path:
    """The folder of a short run."""
    return finished_run(static_mnist.EXAMPLE)


@pytest.fixture
def weights(finished: Path, tmp_path: Path) -> Path:
    """A copy of its weights."""
    return Path(shutil.copy(finished / "model.safetensors", tmp_path / "weights.safetensors"))


@pytest.mark.slow
def test_a_run_says_what_it_does_and_leaves_its_files(
    run_static: Run, images: Path, tmp_path: Path
) -> None:
    status, output, _ = run_static("--data", images, "--epochs", 2, "--limit", 128)
    assert status == 0
    assert "128 to train, 30 to validate, 100 to test" in output
    assert "epoch 2/2  loss " in output
    assert "(30 validation images)" in output
    assert output.count("test accuracy") == 1
    assert "layer 1: 100 of 100 test inputs stable" in output
    folder = tmp_path / "runs" / "static_mnist" / "80-80-seed0"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint-000001.pt",
        "checkpoint-000002.pt",
        "eigenvalues.png",
        "learning_curves.png",
        "max_eigenvalue.png",
        "metrics.json",
        "model.safetensors",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["model"] == "80:80"
    assert metrics["dataset"] == "mnist-600-100"
    assert (metrics["seed"], metrics["epochs"]) == (0, 2)
    assert 0 <= metrics["test_accuracy"] <= 1
    assert metrics["max_real_eigenvalue"] < 0
    assert metrics["stable_fraction"] == metrics["converged_fraction"] == 1
    assert metrics["seconds"] > 0
    assert metrics["images"] == {"train": 128, "validation": 30, "test": 100}
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]
    for key in ("loss", "gradient_norm", "validation_accuracy", "max_real_eigenvalue"):
        assert all(math.isfinite(entry[key]) for entry in metrics["history"])


@pytest.mark.slow
def test_the_baseline_has_no_eigenvalues(run_static: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, _ = run_static(
        "--model", "mlp-50", "--data", images, "--epochs", 1, "--out", out
    )
    assert status == 0
    assert "real part" not in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["max_real_eigenvalue"] is None
    assert metrics["stable_fraction"] is None
    assert not (out / "eigenvalues.png").exists()


@pytest.mark.slow
def test_the_two_layers_are_reported_apart(run_static: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, _ = run_static(
        "--model", "two-layer", "--data", images, "--epochs", 1, "--limit", 64, "--out", out
    )
    assert status == 0
    assert "layer 2: " in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["max_real_eigenvalue"] == max(
        layer["max_real_eigenvalue"] for layer in metrics["layers"]
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_reaches_every_parameter(name: static_mnist.ModelName) -> None:
    torch.manual_seed(0)
    model = Classifier(name)
    batch = Images(torch.rand(8, 28, 28), torch.arange(8))
    StaticTask(FEW_IMAGES_RECIPE).loss(model, batch).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_the_way_to_them(name: static_mnist.ModelName) -> None:
    torch.manual_seed(0)
    model = Classifier(name).eval()
    pictures = torch.rand(5, 28, 28)
    scores, decoded = model(pictures)
    assert decoded.shape == pictures.shape
    assert torch.equal(model.classify(pictures), scores)
    for _, state in model.steady_states(pictures):
        last = state.rates
    if name != "mlp-50":
        torch.testing.assert_close(model.readout(last), scores)


@pytest.mark.slow
def test_evaluate_repeats_the_test(run_static: Run, shared_images: Path, finished: Path) -> None:
    accuracy = json.loads((finished / "metrics.json").read_text())["test_accuracy"]
    status, output, _ = run_static(
        "--evaluate", finished / "model.safetensors", "--data", shared_images
    )
    assert status == 0
    assert f"test accuracy {accuracy:.2%} on 100 images" in output
    assert f"this repeats the recorded {accuracy:.2%}" in output
    assert "layer 1: 100 of 100 test inputs stable" in output


@pytest.mark.parametrize("name", ["50-50", "80-80", "two-layer"])
def test_shipped_weights_say_their_options(name: str) -> None:
    path = static_mnist.SHIPPED_WEIGHTS / f"{name}.safetensors"
    model, _, _ = load_model(static_mnist.EXAMPLE, path, static_mnist.build)
    saved, _ = load_weights(path, static_mnist.EXAMPLE)
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, ORGaNICsDEQ)
        assert torch.equal(saved[f"layers.{number}._extra_state"], layer.get_extra_state())


@pytest.mark.slow
def test_evaluate_finds_shipped_weights_by_name(
    run_static: Run, shared_images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_mnist, "SHIPPED_WEIGHTS", weights.parent)
    weights.rename(weights.with_name("50-50.safetensors"))
    status, output, _ = run_static("--evaluate", "50:50", "--data", shared_images)
    assert status == 0
    assert "50-50.safetensors: model 50:50, trained on mnist-600-100" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "on mnist, which are other images"),
        ({"test_accuracy": 0.001}, "this differs from the recorded 0.10%"),
        ({"test_accuracy": None}, "no accuracy is recorded with these weights"),
    ],
)
def test_evaluate_compares_what_can_be_compared(
    run_static: Run, shared_images: Path, weights: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(weights, static_mnist.EXAMPLE, changes)
    status, output, _ = run_static("--evaluate", weights, "--data", shared_images)
    assert status == 0
    assert message in output


@pytest.mark.slow
def test_a_run_without_a_steady_state_says_so(
    run_static: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Classifier.steady_states

    def unsettled(self: Classifier, pictures: torch.Tensor) -> object:
        for circuit, state in original(self, pictures):
            state.converged[0] = False
            yield circuit, state

    monkeypatch.setattr(Classifier, "steady_states", unsettled)
    out = tmp_path / "run"
    _, output, _ = run_static("--data", images, "--epochs", 1, "--limit", 64, "--out", out)
    assert "3.3% without a steady state" in output
    assert "99 of 100 test inputs stable" in output
    assert "1 without a steady state" in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["stable_fraction"] == metrics["converged_fraction"] == 0.99
