"""How the layers that ORGaNICs are compared with are trained: as published, where that is known.

Adam at a constant rate that is divided by ten near the end; gradients are clipped only where the
authors clip them. A pixel is shown alone, without its complement.
"""

from dataclasses import dataclass

from mnist.baselines import BaselineName
from mnist.sequence_model import ClippedRecipe


@dataclass(frozen=True, kw_only=True)
class BaselineRecipe(ClippedRecipe):
    """A constant learning rate that is divided by ten once.

    Attributes:
        decay_after: the part of all steps after which it is.
    """

    decay_after: float

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of its largest value."""
        return 1.0 if step < self.decay_after * steps else 0.1


def baseline_recipe(name: BaselineName, *, permuted: bool) -> BaselineRecipe:
    """The recipe of a layer for sequential or permuted MNIST."""
    rate = {
        "lstm": (1e-3, 1e-3),
        "antisymmetric": (1e-3, 1e-3),
        "cornn": (2.1e-3, 5.4e-3),
        "lipschitz": (3e-3, 3.5e-3),
        "lem": (1.8e-3, 7.3e-3),
    }[name][permuted]
    clip = {"lstm": (1.0, 1.0), "lem": (1.0, 1.1)}.get(name, (None, None))[permuted]
    hundred = name in ("lstm", "antisymmetric", "lipschitz")
    return BaselineRecipe(
        epochs=100 if hundred else 120,
        batch_size=120 if name == "cornn" else 128,
        learning_rate=rate,
        weight_decay=0.0,
        warmup=0.0,
        ema_decay=0.0,
        on_off=False,
        integrators=False,
        max_step_y=0.0,
        max_step_a=0.0,
        max_step_b=0.0,
        recurrence="none",
        decay_after=0.9 if name == "lipschitz" else 100 / 120,
        clip_norm=clip,
    )
