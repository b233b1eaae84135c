"""What the examples do around the training: images and device, the test, files, comparisons."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from mnist.checkpoints import METRICS, WEIGHTS
from mnist.data import MNIST, Images
from mnist.options import CommonOptions
from mnist.plots import History, plot_learning_curves
from mnist.training import Recipe, Run, Task, accuracy, train
from mnist.weights import assign_weights, find_weights, load_weights, save_weights
from program.device import choose_device
from program.files import write_json


class Findings(Protocol):
    """What an example finds out about a trained model besides its accuracy; `print` says it."""

    def metrics(self) -> Mapping[str, Any]:
        """For metrics.json."""

    def plot(self, history: History, folder: Path) -> None:
        """Draws the example's own pictures into the folder of the run."""


class ExaminedTask(Task, Protocol):
    """A task that also examines the model in the end."""

    def examine(self, model: Any, test: Images) -> Findings:
        """Looks at a trained model, on the test images."""


ModelT = TypeVar("ModelT", bound=nn.Module)
TaskT = TypeVar("TaskT", bound=ExaminedTask)
Build = Callable[[Mapping[str, Any], Path], tuple[ModelT, TaskT]]


def prepare(options: CommonOptions, load: Callable[[], MNIST]) -> tuple[MNIST, Accelerator]:
    """Chooses the device and puts the images there, loaded by one process first."""
    device = choose_device(options.device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    with accelerator.main_process_first():
        data = load()
    if options.limit is not None:
        data = data.limited(options.limit)
    accelerator.print(data)
    return data.to(accelerator.device), accelerator


def train_and_test(
    example: str,
    model: nn.Module,
    task: ExaminedTask,
    data: MNIST,
    recipe: Recipe,
    run: Run,
    accelerator: Accelerator,
) -> None:
    """Trains a model, tests it once, and writes what is known about it into its folder.

    Args:
        example: the example's name.
        model: what to train.
        task: the loss, and what is observed and examined.
        data: the images, on the accelerator's device.
        recipe: how to train.
        run: where, and what the model is: its options go into the metrics and the weights.
        accelerator: the device and the processes; only the main process tests and writes.
    """
    trained = train(model, task, data, recipe, run, accelerator)
    if not accelerator.is_main_process:
        return
    if (run.folder / METRICS).exists():
        print(f"the run in {run.folder} has finished before; its results are in {METRICS}")
        return
    print(f"testing the weights of epoch {trained.best_epoch}", flush=True)
    test_start = time.perf_counter()
    tested = accuracy(task, model, data.test)
    findings = task.examine(model, data.test)
    metrics = {
        **run.options,
        "dataset": data.name,
        "seed": run.seed,
        "epochs": recipe.epochs,
        "test_accuracy": tested,
        **findings.metrics(),
        "seconds": trained.seconds + time.perf_counter() - test_start,
        "best_epoch": trained.best_epoch,
        "images": {part: len(getattr(data, part)) for part in ("train", "validation", "test")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "torch": torch.__version__,
        "recipe": dataclasses.asdict(recipe),
        "history": trained.history,
    }
    described = (*run.options, "dataset", "seed", "test_accuracy", "recipe")
    metadata = {"example": example, **{key: metrics[key] for key in described}}
    save_weights(run.folder / WEIGHTS, model.state_dict(), metadata)
    plot_learning_curves(trained.history, run.folder / "learning_curves.png")
    findings.plot(trained.history, run.folder)
    # Last, as the sign that all is there.
    write_json(run.folder / METRICS, metrics)
    _print_test(tested, data, findings)
    print(f"weights, pictures and {METRICS} are in {run.folder}")


def load_model(
    example: str, path: Path, build: Build[ModelT, TaskT]
) -> tuple[ModelT, TaskT, dict[str, Any]]:
    """Reads a trained model, its task and what is known about it; ready to be tested, on the CPU.

    Args:
        example: the name of the example that wrote the weights.
        path: the safetensors file.
        build: makes the model and its task from the metadata of the file.
    """
    weights, metadata = load_weights(path, example)
    model, task = build(metadata, path)
    assign_weights(model, weights, path)
    model.eval()
    return model, task, metadata


def evaluate(
    example: str,
    name_or_file: str,
    shipped: Path,
    build: Build[nn.Module, ExaminedTask],
    data: MNIST,
) -> None:
    """Repeats the test of trained weights and compares its result with the recorded one.

    Args:
        example: the name of the example that wrote the weights.
        name_or_file: shipped weights by their name, or a file.
        shipped: the folder of the shipped weights.
        build: makes the model and its task from the metadata of the file.
        data: the images, on the device to use.
    """
    path = find_weights(name_or_file, shipped)
    model, task, metadata = load_model(example, path, build)
    model.to(data.test.images.device)
    tested = accuracy(task, model, data.test)
    print(f"{path}: model {metadata.get('model')}, trained on {metadata.get('dataset')}")
    _print_test(tested, data, task.examine(model, data.test), metadata)


def _print_test(
    tested: float, data: MNIST, findings: Findings, metadata: Mapping[str, Any] | None = None
) -> None:
    """Says the result of a test, and whether it is the one that the metadata record."""
    print(f"test accuracy {tested:.2%} on {len(data.test):,} images")
    if metadata is not None:
        print(compare(tested, metadata, data))
    if text := str(findings):
        print(text)


def compare(tested: float, metadata: Mapping[str, Any], data: MNIST) -> str:
    """Says whether an accuracy is the recorded one."""
    recorded = metadata.get("test_accuracy")
    if not isinstance(recorded, float):
        return "no accuracy is recorded with these weights"
    if metadata.get("dataset") != data.name:
        return (
            f"recorded is {recorded:.2%} on {metadata.get('dataset')}, which are other images; "
            "some of those tested here may have been among the training images"
        )
    verdict = "repeats" if tested == recorded else "differs from"
    return f"this {verdict} the recorded {recorded:.2%}"
