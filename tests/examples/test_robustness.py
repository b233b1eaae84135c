"""What smnist_robustness.py says about trained models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import smnist_robustness
from mnist.data import Images
from mnist.robustness import lyapunov_exponents, noisy_accuracies
from mnist.sequence_model import Architecture, Classifier
from mnist.sequence_recipes import FEW_IMAGES_RECIPE
from program.errors import ExampleError
from recurrent import ORGaNICsCell, State
from recurrent.dynamics import euler_step
from recurrent.stability import step_jacobian


def build() -> Classifier:
    torch.manual_seed(0)
    architecture = Architecture(
        model="organics", hidden_size=5, resize=4, permuted=False, fixed_time_constants=False
    )
    return Classifier(architecture, FEW_IMAGES_RECIPE).double()


def test_the_exponent_is_that_of_the_product_of_the_steps_jacobians() -> None:
    model, images = build(), torch.rand(3, 28, 28, dtype=torch.float64)
    found = lyapunov_exponents(model, images, seed=1)
    assert model.cell is not None
    parameters, x = model.cell.parameters_of_step(), model.sequences(images)
    generator = torch.Generator().manual_seed(1)
    tangent = torch.cat([torch.randn(3, 5, generator=generator).double() for _ in range(4)], -1)
    state = State(*(part.detach().expand(3, -1) for part in model.first_state))
    skipped = -(-len(x) // 10)
    for index, row in enumerate(x):
        if index == skipped:
            start = tangent.norm(dim=-1)
        jacobian, _ = step_jacobian(model.cell.model, parameters, row, state)
        tangent = torch.einsum("bij,bj->bi", jacobian, tangent)
        state = euler_step(model.cell.model, parameters, row, state)
    expected = (tangent.norm(dim=-1) / start).log() / (len(x) - skipped)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-8, atol=1e-10)


def test_noise_stays_within_the_pixels_range_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().float()
    seen: list[torch.Tensor] = []
    forward = model.forward

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return forward(images)

    monkeypatch.setattr(model, "forward", watched)
    test = Images(torch.rand(20, 28, 28), torch.randint(10, (20,)))
    first = noisy_accuracies(model, test, seed=3)
    assert list(first) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert noisy_accuracies(model, test, seed=3) == first
    assert all(float(batch.min()) >= 0 and float(batch.max()) <= 1 for batch in seen)
    assert float((seen[5] - test.images).std()) > 3 * float((seen[1] - test.images).std())


@pytest.mark.slow
def test_the_program_writes_all_figures_and_fails_where_a_bound_does_not_hold(
    finished_run: Callable[[str], Path],
    shared_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = finished_run("smnist_bptt") / "model.safetensors"
    out = tmp_path / "new" / "figures.json"
    options = [str(weights), "--data", str(shared_images), "--limit", "30", "--out", str(out)]
    smnist_robustness.main([*options, "--device", "cpu"])
    figures = json.loads(out.read_text())
    assert figures["test_images"] == 30
    (found,) = figures["models"].values()
    assert set(found["accuracy_under_noise"]) == {"0", "0.1", "0.2", "0.3", "0.4", "0.5"}
    assert found["lyapunov"]["images"] == 30
    for name, kind in found["states"].items():
        assert kind["steps"] == (160 if "10 times" in name else 16)
        assert all(
            value <= top for value, top in zip(kind["largest"], found["stated_bound"], strict=True)
        )
    assert found["states"]["test images"]["sequences"] == 30
    tight = found["states"]["white, 10 times"]["largest"]

    def state_bound(self: ORGaNICsCell, input_bound: float = 1.0) -> State:
        return State(*(torch.tensor(0.99 * value) for value in tight))

    monkeypatch.setattr(ORGaNICsCell, "state_bound", state_bound)
    with pytest.raises(ExampleError, match=r"left the bound.*white"):
        smnist_robustness.main([*options, "--device", "cpu"])
