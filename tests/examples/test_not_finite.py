"""Training ends at the first loss, gradient or weight that is not finite, and can be resumed."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _runs import EXAMPLES, short_run
from torch import Tensor, nn

from mnist.watched import Watched
from mnist.weights import load_weights
from program.errors import ExampleError

Run = Callable[..., tuple[int, str, str]]
TASKS = {"static_mnist": "StaticTask", "smnist_bptt": "SequenceTask"}
# One of the recurrent weights of each example's model.
WEIGHT = {
    "static_mnist": "layers.0.parametrizations.recurrent_weight.original",
    "smnist_bptt": "recurrent_weight",
}


@pytest.fixture(params=list(EXAMPLES))
def example(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch, example: str) -> Callable[..., None]:
    """Lets a function change the loss of one step, counted over the whole run from 1."""

    def install(step: int, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        task = getattr(EXAMPLES[example], TASKS[example])
        original, calls = task.loss, []

        def loss(self: object, model: nn.Module, batch: object) -> Tensor:
            calls.append(1)
            value = original(self, model, batch)
            return change(model, value) if len(calls) == step else value

        monkeypatch.setattr(task, "loss", loss)

    return install


def find(model: nn.Module, ending: str) -> tuple[str, nn.Parameter]:
    return next(pair for pair in model.named_parameters() if ending in pair[0])


def steps_of(example: str, images: int = 128) -> int:
    recipe = EXAMPLES[example].FEW_IMAGES_RECIPE
    return math.ceil(images / recipe.batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss(run_main: Run, images: Path, example: str, spoil: Run, value: float) -> None:
    steps = steps_of(example)
    assert steps > 1
    spoil(2, lambda model, loss: loss * value)
    status, output, error = run_main(
        EXAMPLES[example].main, *short_run(example), "--data", images, "--out", "run"
    )
    assert status == 2
    assert f"the loss is {value}" in error
    assert f"in epoch 1, step 2 of {steps}; expected finite ones, not finite: the loss" in error
    assert "keeps the checkpoint of epoch 0, which --resume continues" in error
    assert "epoch 1/2" not in output
    assert [path.name for path in Path("run").iterdir()] == ["checkpoint-000000.pt"]


def test_a_gradient(run_main: Run, images: Path, example: str, spoil: Run) -> None:
    name = []

    def poison(model: nn.Module, loss: Tensor) -> Tensor:
        path, parameter = find(model, WEIGHT[example])
        name.append(path)
        parameter.register_hook(lambda grad: grad * math.nan)
        return loss

    spoil(2, poison)
    status, _, error = run_main(
        EXAMPLES[example].main, *short_run(example), "--data", images, "--out", "run"
    )
    assert status == 2
    assert f"step 2 of {steps_of(example)}; expected" in error
    assert f"not finite: the gradient of {name[0]}; the recipe's learning rate" in error
    assert "the loss is nan" not in error


@pytest.mark.slow
def test_a_run_that_was_ended_is_resumed_to_the_same_bits(
    run_main: Run,
    shared_images: Path,
    finished_run: Callable[[str], Path],
    example: str,
    spoil: Run,
) -> None:
    whole, main = finished_run(example), EXAMPLES[example].main
    arguments = [*short_run(example), "--data", shared_images, "--out", "ended"]
    spoil(steps_of(example) + 1, lambda model, loss: loss * math.nan)
    status, _, error = run_main(main, *arguments)
    assert status == 2
    assert "in epoch 2, step 1 of" in error
    assert "ended keeps the checkpoint of epoch 1" in error
    # Another process has no such accident.
    status, output, _ = run_main(main, *arguments, "--resume")
    assert status == 0
    assert "after epoch 1 of 2" in output
    first, second = (
        load_weights(folder / "model.safetensors", example)[0] for folder in (whole, Path("ended"))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights(
    run_main: Run, images: Path, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last step of an epoch, where no later step would notice."""
    original, steps = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        result = original(self, *arguments)
        steps.append(1)
        if len(steps) == steps_of(example):
            # The last parameter, the bias of the read-out.
            self.param_groups[-1]["params"][-1].data[0] = math.inf
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    status, _, error = run_main(
        EXAMPLES[example].main, *short_run(example), "--data", images, "--out", "run"
    )
    assert status == 2
    assert f"weights are not finite after step {len(steps)} of {len(steps)} in epoch 1: " in error
    assert [path.name for path in Path("run").iterdir()] == ["checkpoint-000000.pt"]


class TestReadTogether:
    """As on a GPU, where many steps are read at once."""

    def watched(self, losses: list[float], scales: list[float]) -> Watched:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        watched = Watched(model, 3, 9, "advice")
        for loss, scale in zip(losses, scales, strict=True):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, scale if number == 1 else 1.0)
            watched.add(torch.tensor(loss))
        return watched

    def test_finite(self) -> None:
        watched = self.watched([1.0, 2.0], [1.0, 1.0])
        assert watched.read() == 2.0
        found = watched.summary()
        assert found["loss"] == 1.5
        assert found["gradient_norm"] == pytest.approx(math.sqrt(12))

    def test_the_first_step_is_named(self) -> None:
        watched = self.watched([1.0, 2.0, math.nan], [1.0, math.inf, math.nan])
        with pytest.raises(ExampleError) as caught:
            watched.read()
        assert str(caught.value) == (
            "the loss is 2.0 and the norm of its gradient inf in epoch 3, step 2 of 9; expected "
            "finite ones, not finite: the gradient of 0.bias; advice"
        )

    def test_a_loss_without_gradients(self) -> None:
        watched = Watched(nn.Linear(2, 2), 1, 1, "advice")
        watched.add(torch.tensor(math.nan))
        with pytest.raises(ExampleError, match="the loss is nan and the norm of its gradient 0"):
            watched.read()

    def test_squares_that_overflow(self) -> None:
        with pytest.raises(ExampleError, match=r"not finite: the gradient of 0\.bias"):
            self.watched([1.0], [1e38]).read()
