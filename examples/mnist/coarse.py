"""Training coarse to fine in time: several pixels averaged to one step, then fewer, then each."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mnist.sequence_model import Classifier, ClippedRecipe, SequenceRecipe
from program.errors import ExampleError

Stages = tuple[tuple[int, int], ...]


def parse_stages(text: str, steps: int) -> Stages:
    """Reads `4:20,2:4,1:12`: pixels averaged to one step, and the epochs for which they are.

    Args:
        text: the value of --coarse.
        steps: the pixels of an image.

    Returns:
        The stages, from coarse to fine; in the last one a step shows one pixel.
    """
    try:
        stages = tuple((int(k), int(n)) for k, n in (part.split(":") for part in text.split(",")))
    except ValueError as error:
        raise ExampleError(
            f"--coarse is {text!r}; expected pixels:epochs,..., such as 4:20,2:4,1:12"
        ) from error
    pixels = [k for k, _ in stages]
    if min(pixels) < 1 or any(epochs < 1 for _, epochs in stages):
        raise ExampleError(f"--coarse is {text!r}; expected numbers of 1 at least")
    if pixels[-1] != 1 or any(k <= finer for k, finer in pairwise(pixels)):
        raise ExampleError(f"--coarse is {text!r}; expected ever fewer pixels, 1 in the end")
    if odd := [k for k in pixels if steps % k]:
        raise ExampleError(
            f"--coarse averages {odd[0]} pixels; expected divisors of the {steps} of an image"
        )
    return stages


@dataclass(frozen=True, kw_only=True)
class CoarseRecipe(ClippedRecipe):
    """Stages with several pixels averaged to one step, `dt / tau` as many times larger.

    The learning rate of each stage rises and falls like that of a whole run, and its largest value
    is proportional to the pixels: a finer stage mends what a coarser one has learned. The largest
    dt/tau are those of one pixel a step.

    Attributes:
        stages: the pixels of a step, and for how many epochs.
    """

    stages: Stages

    @property
    def coarsest(self) -> int:
        """The pixels of a step in the first stage."""
        return self.stages[0][0]

    def prepare(self, model: Classifier, epoch: int) -> bool:
        """Gives a model the steps of an epoch; whether a stage begins with it."""
        first, pixels, _ = self._stage(epoch)
        model.coarsen(pixels)
        return epoch == first

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of its largest value."""
        per_epoch = steps // self.epochs
        first, pixels, epochs = self._stage(min(step // per_epoch + 1, self.epochs))
        within = super().rate(step - (first - 1) * per_epoch, epochs * per_epoch)
        return pixels / self.coarsest * within

    def _stage(self, epoch: int) -> tuple[int, int, int]:
        """The first epoch, the pixels and the number of epochs of the stage that has an epoch."""
        first = 1
        for pixels, epochs in self.stages:
            if epoch < first + epochs:
                return first, pixels, epochs
            first += epochs
        raise ValueError(f"epoch: got {epoch}, expected 1 to {first - 1}")


def coarsen_recipe(recipe: SequenceRecipe, stages: Sequence[tuple[int, int]]) -> CoarseRecipe:
    """The recipe in stages; its largest dt/tau become those of the coarsest steps."""
    values = {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(SequenceRecipe)
    }
    for name in ("max_step_y", "max_step_a", "max_step_b"):
        values[name] /= stages[0][0]
    values["epochs"] = sum(epochs for _, epochs in stages)
    values["clip_norm"] = recipe.largest_norm
    return CoarseRecipe(**values, stages=tuple(stages))
