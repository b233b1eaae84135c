"""How the circuits are optimised that see images pixel by pixel."""

import dataclasses
from dataclasses import dataclass

from mnist.sequence_model import SequenceRecipe


@dataclass(frozen=True, kw_only=True)
class PaperRecipe(SequenceRecipe):
    """The paper's schedule: the learning rate is multiplied by a factor every few epochs.

    The optimizer is that of all recipes here, AdamW, where the paper has Adam.

    Attributes:
        decay: the factor.
        decay_epochs: the epochs between two decays.
    """

    decay: float
    decay_epochs: int

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of its largest value."""
        epoch = step * self.epochs // steps
        return self.decay ** (epoch // self.decay_epochs)


FULL_MNIST_RECIPE = SequenceRecipe(
    epochs=12,
    batch_size=128,
    learning_rate=2e-2,
    weight_decay=1e-5,
    warmup=0.1,
    ema_decay=0.999,
    on_off=True,
    integrators=True,
    max_step_y=1.0,
    max_step_a=1.0,
    max_step_b=1.0,
    recurrence="bounded",
    muon_rate=8e-2,
)


FEW_IMAGES_RECIPE = dataclasses.replace(FULL_MNIST_RECIPE, epochs=20, batch_size=64, ema_decay=0.99)


PAPER_RECIPE = PaperRecipe(
    epochs=300,
    batch_size=256,
    learning_rate=1e-2,
    weight_decay=1e-5,
    warmup=0.0,
    ema_decay=0.0,
    on_off=False,
    integrators=False,
    max_step_y=0.02,
    max_step_a=0.005,
    max_step_b=0.1,
    recurrence="unconstrained",
    decay=0.8,
    decay_epochs=30,
)
