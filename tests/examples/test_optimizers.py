"""Which optimizer has which parameter, and when the optimizers step."""

import dataclasses
from typing import Any

import pytest
import torch

from mnist.optimizers import Optimizers
from mnist.sequence_model import Architecture, Classifier
from mnist.sequence_recipes import FEW_IMAGES_RECIPE

STEPS = 20
SQUARE = {
    "rnn.cells.0.parametrizations.recurrent_weight.original",
    "rnn.cells.0.gain_weight_y",
    "rnn.cells.0.gain_weight_a",
    "rnn.cells.0.baseline_gain_weight_y",
    "rnn.cells.0.baseline_gain_weight_a",
}


def build(model: str = "organics", /, **changes: Any) -> tuple[Classifier, Optimizers]:
    torch.manual_seed(0)
    recipe = dataclasses.replace(FEW_IMAGES_RECIPE, **changes)
    architecture = Architecture(
        model=model,  # type: ignore[arg-type]
        hidden_size=6,
        resize=4,
        permuted=False,
        fixed_time_constants=False,
    )
    classifier = Classifier(architecture, recipe)
    return classifier, Optimizers(classifier, recipe, STEPS)


def moved(classifier: Classifier, optimizers: Optimizers) -> set[str]:
    """The names of the parameters that a step changes."""
    before = {name: part.detach().clone() for name, part in classifier.named_parameters()}
    for part in classifier.parameters():
        part.grad = torch.randn_like(part)
    optimizers.step()
    after = dict(classifier.named_parameters())
    return {
        name
        for name, old in before.items()
        if not torch.allclose(old, after[name], rtol=0.0, atol=1e-12)
    }


@pytest.mark.parametrize(("rate", "names"), [("learning_rate", SQUARE), ("muon_rate", None)])
def test_muon_has_the_square_matrices_and_adamw_all_others(
    rate: str, names: set[str] | None
) -> None:
    classifier, optimizers = build(weight_decay=0.0, **{rate: 0.0 if names else 1e-30})
    everything = {name for name, _ in classifier.named_parameters()}
    expected = names if names is not None else everything - SQUARE
    assert moved(classifier, optimizers) == expected


@pytest.mark.parametrize(("model", "changes"), [("organics", {"muon_rate": 0.0}), ("lstm", {})])
def test_without_a_rate_or_circuits_adamw_has_all(model: str, changes: dict[str, float]) -> None:
    classifier, optimizers = build(model, **changes)
    assert set(optimizers.state_dict()) == {"adamw"}
    assert moved(classifier, optimizers) == {name for name, _ in classifier.named_parameters()}


def test_a_state_continues_to_the_same_bits() -> None:
    results = []
    for interrupted in (False, True):
        classifier, optimizers = build()
        for step in range(6):
            if interrupted and step == 3:
                state = optimizers.state_dict()
                weights = classifier.state_dict()
                classifier, optimizers = build()
                classifier.load_state_dict(weights)
                optimizers.load_state_dict(state)
            generator = torch.Generator().manual_seed(step)
            for part in classifier.parameters():
                part.grad = torch.randn(part.shape, generator=generator)
            optimizers.step()
        results.append(dict(classifier.named_parameters()))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
