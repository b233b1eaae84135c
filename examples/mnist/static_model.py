"""The classifier of images that are constant inputs, and how it is optimised."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deq_organics import Circuit, ORGaNICsDEQ, SteadyState
from mnist.training import Recipe

CODE_SIZE = 40


LAYER_SIZES = {"80:80": (80,), "50:50": (50,), "two-layer": (120, 60), "mlp-50": (50,)}


ModelName = Literal["80:80", "50:50", "two-layer", "mlp-50"]


@dataclass(frozen=True, kw_only=True)
class StaticRecipe(Recipe):
    """How a model is optimised, and what it is optimised for.

    Attributes:
        input_dropout: the probability that a pixel is dropped.
        hidden_dropout: the same for the encoder's first hidden units.
        label_smoothing: of the cross-entropy.
        reconstruction_weight: of the mean squared error of the decoded image.
    """

    input_dropout: float
    hidden_dropout: float
    readout_gain: float
    label_smoothing: float
    reconstruction_weight: float


FULL_MNIST_RECIPE = StaticRecipe(
    epochs=28,
    batch_size=128,
    learning_rate=3e-3,
    weight_decay=0.2,
    warmup=0.1,
    ema_decay=0.999,
    input_dropout=0.2,
    hidden_dropout=0.3,
    readout_gain=30.0,
    label_smoothing=0.1,
    reconstruction_weight=10.0,
)


FEW_IMAGES_RECIPE = dataclasses.replace(FULL_MNIST_RECIPE, epochs=80, batch_size=64, ema_decay=0.99)


class Classifier(nn.Module):
    """An autoencoder, layers that work on its code, and a linear read-out.

    Args:
        name: which layers.
        recipe: its dropout and the gain of the read-out, which matter in training only.
    """

    def __init__(self, name: ModelName, recipe: StaticRecipe = FULL_MNIST_RECIPE) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(recipe.input_dropout),
            nn.Linear(784, 360),
            nn.ReLU(),
            nn.Dropout(recipe.hidden_dropout),
            nn.Linear(360, 120),
            nn.ReLU(),
            nn.Linear(120, CODE_SIZE),
            nn.Sigmoid(),
        )
        self.decoder = nn.Sequential(
            nn.Linear(CODE_SIZE, 120),
            nn.ReLU(),
            nn.Linear(120, 360),
            nn.ReLU(),
            nn.Linear(360, 784),
            nn.Sigmoid(),
            nn.Unflatten(-1, (28, 28)),
        )
        sizes = (CODE_SIZE, *LAYER_SIZES[name])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, units), nn.ReLU())
            if name == "mlp-50"
            # The eigenvalues of validation and test inputs are computed anyway.
            else ORGaNICsDEQ(inputs, units, recurrence="spectral", verify_stability=False)
            for inputs, units in itertools.pairwise(sizes)
        )
        self.readout = nn.Linear(sizes[-1], 10)
        if name != "mlp-50":
            with torch.no_grad():
                self.readout.weight *= recipe.readout_gain

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images `(N, 28, 28)` to scores `(N, 10)` and decoded images `(N, 28, 28)`."""
        code = self.encoder(images)
        return self._scores(code), self.decoder(code)

    def classify(self, images: Tensor) -> Tensor:
        """Maps images `(N, 28, 28)` to scores `(N, 10)`."""
        return self._scores(self.encoder(images))

    def steady_states(self, images: Tensor) -> Iterator[tuple[Circuit, SteadyState]]:
        """Each ORGaNICs layer's circuits for images `(N, 28, 28)`, and where they settle."""
        values = self.encoder(images)
        for layer in self.layers:
            if isinstance(layer, ORGaNICsDEQ):
                yield layer.circuit(values), layer.steady_state(values)
            values = layer(values)

    def _scores(self, code: Tensor) -> Tensor:
        for layer in self.layers:
            code = layer(code)
            if self.training:
                # A circuit without a steady state answers with NaN; it must not end the training.
                code = code.nan_to_num()
        scores: Tensor = self.readout(code)
        return scores
