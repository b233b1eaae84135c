"""The command line of static_mnist.py, from its options to its files."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import static_mnist
import torch
from _mnist import Images
from _weights import load_weights, save_weights
from static_mnist import FEW_IMAGES_RECIPE, Classifier, StaticTask

Run = Callable[..., tuple[int, str, str]]
MODELS = ["80:80", "50:50", "two-layer", "mlp-50"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_images: Path) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ["--model", "50:50", "--epochs", "2", "--limit", "128"]
    static_mnist.main([*options, "--data", str(shared_images), "--out", str(folder)])
    return folder


@pytest.fixture
def weights(finished: Path, tmp_path: Path) -> Path:
    """A copy of its weights."""
    return Path(shutil.copy(finished / "model.safetensors", tmp_path / "weights.safetensors"))


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


def test_evaluate_repeats_the_test(run_static: Run, shared_images: Path, finished: Path) -> None:
    accuracy = json.loads((finished / "metrics.json").read_text())["test_accuracy"]
    status, output, _ = run_static(
        "--evaluate", finished / "model.safetensors", "--data", shared_images
    )
    assert status == 0
    assert f"test accuracy {accuracy:.2%} on 100 images" in output
    assert f"this repeats the recorded {accuracy:.2%}" in output
    assert "layer 1: 100 of 100 test inputs stable" in output


def test_evaluate_finds_shipped_weights_by_name(
    run_static: Run, shared_images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_mnist, "SHIPPED_WEIGHTS", weights.parent)
    weights.rename(weights.with_name("50-50.safetensors"))
    status, output, _ = run_static("--evaluate", "50:50", "--data", shared_images)
    assert status == 0
    assert "50-50.safetensors: model 50:50, trained on mnist-600-100" in output


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
    rewrite(weights, changes)
    status, output, _ = run_static("--evaluate", weights, "--data", shared_images)
    assert status == 0
    assert message in output


def test_a_finished_run_is_neither_repeated_nor_tested_again(
    run_static: Run, shared_images: Path, finished: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    options = ["--model", "50:50", "--epochs", 2, "--limit", 128, "--resume"]
    status, output, _ = run_static(*options, "--data", shared_images, "--out", finished)
    assert status == 0
    assert "has finished before" in output
    assert "test accuracy" not in output
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


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


def test_an_infinite_loss_ends_the_run(
    run_static: Run, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StaticTask, "loss", lambda *_: torch.tensor(math.nan, requires_grad=True))
    status, _, error = run_static("--model", "mlp-50", "--data", images)
    assert status == 2
    assert "the loss is nan and the norm of its gradient 0.0 in epoch 1" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is 0; expected 1 at least"),
        (["--epochs", "-3"], "--epochs is -3; expected 1 at least"),
        (["--seed", "-1"], "--seed is -1; expected 0 at least"),
        (["--limit", "0"], "--limit is 0; expected 1 to 570 images"),
        (["--limit", "1000"], "--limit is 1000; expected 1 to 570 images"),
        (["--data", "nowhere"], "--data nowhere is not a directory"),
        (["--data", "."], "--data . lacks train-images-idx3-ubyte"),
        (["--resume"], "--resume found no checkpoint in runs/static_mnist/80-80-seed0"),
        (["--out", "images"], "--out images already holds MNIST"),
        (["--out", "images/MNIST/raw/t10k-images-idx3-ubyte"], "cannot be made a folder"),
        (["--evaluate", "90:90"], "--evaluate 90:90 is neither a file nor the name of shipped"),
        (["--evaluate", "images"], "--evaluate images is neither a file nor the name of"),
        (["--evaluate", "80:80", "--resume"], "--resume has no meaning with --evaluate"),
        (["--evaluate", "80:80", "--epochs", "3"], "--epochs has no meaning with --evaluate"),
        (["--evaluate", "80:80", "--model", "80:80"], "--model has no meaning with --evaluate"),
        (["--evaluate", "80:80", "--out", "there"], "--out has no meaning with --evaluate"),
    ],
)
def test_bad_options_are_refused(
    run_static: Run, images: Path, arguments: list[str], message: str
) -> None:
    given = arguments if "--data" in arguments else ["--data", str(images), *arguments]
    status, output, error = run_static(*given)
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert "epoch 1" not in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "100:100"],
        ["--epochs", "1e3"],
        ["--epochs", "many"],
        ["--device", "tpu"],
        ["--learning-rate", "0.1"],
    ],
)
def test_options_that_cannot_be_parsed_are_refused(run_static: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        run_static(*arguments)
    assert refusal.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is there")
def test_cuda_is_refused_where_there_is_none(run_static: Run) -> None:
    status, _, error = run_static("--device", "cuda")
    assert status == 2
    assert "--device is cuda, which this machine's torch cannot use; expected cpu" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "80:80"}, "model is '50:50' there and '80:80' here"),
        ({"--seed": "1"}, "seed is 0 there and 1 here"),
        ({"--epochs": "3"}, "epochs is 2 there and 3 here"),
        ({"--limit": "64"}, "training images is 128 there and 64 here"),
    ],
)
def test_another_run_is_not_resumed(
    run_static: Run, shared_images: Path, finished: Path, change: dict[str, str], message: str
) -> None:
    given = {"--model": "50:50", "--epochs": "2", "--limit": "128"}
    options = itertools.chain.from_iterable((given | change).items())
    status, _, error = run_static(*options, "--data", shared_images, "--out", finished, "--resume")
    assert status == 2
    assert message in error


def test_an_existing_run_is_not_overwritten(
    run_static: Run, shared_images: Path, finished: Path
) -> None:
    status, _, error = run_static("--data", shared_images, "--out", finished)
    assert status == 2
    assert "already holds" in error
    assert "--resume to continue" in error


def rewrite(file: Path, changes: dict[str, object], **tensors: torch.Tensor) -> None:
    """Changes the metadata and the tensors of saved weights."""
    saved, metadata = load_weights(file, static_mnist.EXAMPLE)
    save_weights(file, saved | tensors, metadata | changes)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _spoil(file: Path) -> None:
    rewrite(file, {}, **{"readout.bias": torch.full((10,), math.nan)})


def _rename(file: Path) -> None:
    rewrite(file, {"model": "80:80"})


def _extend(file: Path) -> None:
    rewrite(file, {}, another=torch.zeros(1))


def _unknown(file: Path) -> None:
    rewrite(file, {"model": "7:7"})


def _foreign(file: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(1)}, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "cannot be read"),
        (_empty, "cannot be read"),
        (_spoil, "has values that are not finite in readout.bias"),
        (_rename, "does not fit the model: size mismatch for"),
        (_extend, 'does not fit the model: Unexpected key(s) in state_dict: "another"'),
        (_unknown, "is of model '7:7'; expected one of 80:80, 50:50, two-layer, mlp-50"),
        (_foreign, "was written by None; expected 'static_mnist'"),
    ],
)
def test_bad_weights_are_refused(
    run_static: Run,
    shared_images: Path,
    weights: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(weights)
    status, _, error = run_static("--evaluate", weights, "--data", shared_images)
    assert status == 2
    assert f"--evaluate {weights}" in error
    assert message in error
