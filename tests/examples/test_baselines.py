"""The layers that ORGaNICs are compared with obey their authors' equations and learn."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _runs import short_run

import smnist_bptt
from mnist.baseline_recipes import BaselineRecipe, baseline_recipe
from mnist.baselines import (
    LEM,
    AntisymmetricRNN,
    CoRNN,
    LipschitzRNN,
    TimeStepper,
    build_baseline,
    chrono_lstm,
)
from mnist.sequence_model import Architecture, Classifier
from program.errors import ExampleError

Run = Callable[..., tuple[int, str, str]]
Array = np.ndarray
STEPPERS = ["antisymmetric", "cornn", "lipschitz", "lem"]
SCALE, T, N, M, SIZE = 3.0, 12, 4, 2, 5


def sigmoid(value: Array) -> Array:
    return 1 / (1 + np.exp(-value))


def build(name: str) -> TimeStepper:
    torch.manual_seed(0)
    made: dict[str, TimeStepper] = {
        "antisymmetric": AntisymmetricRNN(M, SIZE, step=0.1, damping=0.3),
        "cornn": CoRNN(M, SIZE, step=0.08, frequency=2.7, damping=1.7),
        "lipschitz": LipschitzRNN(M, SIZE, step=0.2, antisymmetry=0.75, damping=0.1),
        "lem": LEM(M, SIZE, step=0.3),
    }
    layer = made[name].double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def expected(name: str, layer: TimeStepper, x: Array, dt: float) -> Array:
    """All outputs, by the papers' equations, one sample at a time; shares no code with them."""
    w = {key: value.detach().numpy() for key, value in layer.named_parameters()}
    outputs = np.empty((T, N, SIZE))
    for sample in range(N):
        h, y, z = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
        for t in range(T):
            u = x[t, sample]
            if name == "antisymmetric":
                a = w["weight"] - w["weight"].T - 0.3 * np.eye(SIZE)
                h = h + dt * np.tanh(a @ h + w["input.weight"] @ u + w["input.bias"])
            elif name == "cornn":
                joined = np.concatenate([u, z, y])
                z = z + dt * (
                    np.tanh(w["weight.weight"] @ joined + w["weight.bias"]) - 2.7 * y - 1.7 * z
                )
                y = h = y + dt * z
            elif name == "lipschitz":
                b, c = w["linear"], w["inner"]
                a = 0.75 * (b - b.T) + 0.25 * (b + b.T) - 0.1 * np.eye(SIZE)
                v = 0.75 * (c - c.T) + 0.25 * (c + c.T) - 0.1 * np.eye(SIZE)
                drive = w["input.weight"] @ u + w["input.bias"]
                h = h + dt * (a @ h + np.tanh(v @ h + drive))
            else:
                u1, u2, uz, uy = np.split(w["from_input.weight"] @ u + w["from_input.bias"], 4)
                v1, v2, vz = np.split(w["from_y.weight"] @ y + w["from_y.bias"], 3)
                d1, d2 = dt * sigmoid(u1 + v1), dt * sigmoid(u2 + v2)
                z = (1 - d2) * z + d2 * np.tanh(uz + vz)
                y = h = (1 - d1) * y + d1 * np.tanh(w["from_z.weight"] @ z + w["from_z.bias"] + uy)
            outputs[t, sample] = h
    return outputs


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_layers_obey_their_equations(name: str, scale: float) -> None:
    layer = build(name)
    layer.step_scale = scale
    x = torch.randn(T, N, M, dtype=torch.float64)
    outputs, last = layer(x)
    reference = torch.from_numpy(expected(name, layer, x.numpy(), layer.step * scale))
    torch.testing.assert_close(outputs, reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last, reference[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STEPPERS)
def test_steps_that_are_too_long_are_refused(name: str) -> None:
    layer = build(name)
    with pytest.raises(ExampleError, match="show fewer pixels at a step"):
        layer.step_scale = 100.0


def test_an_undriven_oscillator_is_stable_up_to_the_longest_step() -> None:
    for frequency, damping in ((2.7, 4.7), (0.4, 8.0), (5.0, 0.5)):
        longest = CoRNN(1, 1, step=1e-3, frequency=frequency, damping=damping).longest_step
        for part, stable in ((0.999, True), (1.001, False)):
            dt = part * longest
            kick = np.array([[1 - dt * damping, -dt * frequency], [0, 1]])
            matrix = np.array([[1, 0], [dt, 1]]) @ kick
            assert (np.abs(np.linalg.eigvals(matrix)).max() < 1) is np.bool_(stable)


def test_the_lstm_starts_with_long_memories() -> None:
    lstm: Any = chrono_lstm(1, 2000, 784)
    biases = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)
    memories = biases[1].exp()
    assert memories.min() >= 1
    assert 700 < memories.max() <= 783
    assert memories.mean() == pytest.approx(392, rel=0.1)
    torch.testing.assert_close(biases[0], -biases[1])
    assert (biases[2] == 0).all()
    assert (biases[3] == 0).all()


@pytest.mark.parametrize("permuted", [False, True])
def test_published_constants_and_sizes(permuted: bool) -> None:
    parameters = {"antisymmetric": 10, "cornn": 34, "lipschitz": 34, "lem": 68, "lstm": 68}
    for name, thousands in parameters.items():
        architecture = Architecture(name, 128, 28, permuted, False)  # type: ignore[arg-type]
        recipe = baseline_recipe(name, permuted=permuted)  # type: ignore[arg-type]
        model = Classifier(architecture, recipe)
        count = sum(parameter.numel() for parameter in model.parameters())
        if name == "antisymmetric":
            # The paper counts the antisymmetric matrix's free entries once.
            count -= 128 * 129 // 2
        assert count == pytest.approx(1000 * thousands, rel=0.06), name
        assert model.sequences(torch.rand(2, 28, 28)).shape == (784, 2, 1)
        assert (recipe.largest_norm is not None) is (name in ("lstm", "lem"))
    cornn = build_baseline("cornn", 1, 4, side=28, permuted=permuted)
    assert isinstance(cornn, CoRNN)
    assert (cornn.step, cornn.frequency, cornn.damping) == (
        (0.076, 0.4, 8.0) if permuted else (0.042, 2.7, 4.7)
    )


def test_rates_are_divided_by_ten_near_the_end() -> None:
    recipe = baseline_recipe("lem", permuted=True)
    assert [recipe.rate(step, 1200) for step in (0, 999, 1000, 1199)] == [1, 1, 0.1, 0.1]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPERS)
def test_a_run_of_every_layer(run_sequence: Run, images: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    options = short_run(smnist_bptt.EXAMPLE, model=name)
    del options[options.index("--epochs") : options.index("--epochs") + 2]
    status, output, _ = run_sequence(
        *options, "--coarse", "2:1,1:1", "--data", images, "--out", out
    )
    assert status == 0, output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["model"] == name
    assert metrics["recipe"]["clip_norm"] == (1.0 if name == "lem" else None)
    status, output, _ = run_sequence("--evaluate", out / "model.safetensors", "--data", images)
    assert f"this repeats the recorded {metrics['test_accuracy']:.2%}" in output


@pytest.mark.slow
def test_gradients_are_clipped_where_the_recipe_says_so(
    run_sequence: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def watch(self: torch.optim.AdamW, *arguments: object) -> object:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(float(grad.square().sum()) for grad in grads)))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    monkeypatch.setattr(
        "smnist_bptt.baseline_recipe",
        lambda name, permuted: _clipping(baseline_recipe(name, permuted=permuted)),
    )
    options = short_run(smnist_bptt.EXAMPLE, model="lstm", epochs="1")
    status, _, _ = run_sequence(*options, "--data", images, "--out", tmp_path / "run")
    assert status == 0
    assert norms
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert history[0]["largest_gradient_norm"] > 1e-2


def _clipping(recipe: BaselineRecipe) -> BaselineRecipe:
    return dataclasses.replace(recipe, clip_norm=1e-3)
