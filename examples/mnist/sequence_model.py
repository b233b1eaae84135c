"""The recurrent classifier of images that are shown pixel by pixel, and what it is built from."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist.baselines import TimeStepper, build_baseline
from mnist.data import CLASSES
from mnist.training import Recipe
from recurrent import ORGaNICsCell, ORGaNICsRNN, State

SIDE = 28
PERMUTATION_SEED = 2024
# The start as leaky integrators: dt/tau as parts of their maxima, entries of W, a gain. The slowest
# neurons remember a part of the sequence, whatever its length.
SLOWEST_TIMES_STEPS, FASTEST = 5.88, 0.95
LARGEST_NORMALIZATION = 0.05
READOUT_GAIN = 5.0
# The input drives a bounded cell by a third of what it drives others: what reads y makes up for it.
BOUNDED_GAIN = 3.0

HIDDEN_MATRICES = (
    "recurrent_weight",
    "gain_weight_y",
    "gain_weight_a",
    "baseline_gain_weight_y",
    "baseline_gain_weight_a",
)

ModelName = Literal["organics", "lstm", "antisymmetric", "cornn", "lipschitz", "lem"]


@dataclass(frozen=True, kw_only=True)
class SequenceRecipe(Recipe):
    """How a model is built, starts and is optimised; other layers have a use for `on_off` only.

    Attributes:
        on_off: whether a step shows 1 - x beside its pixel x, as OFF cells would.
        integrators: whether the neurons start as leaky integrators (`start_as_integrators`), from
            rest, or all as the paper draws it, the initial state included.
        max_step_y: the largest dt/tau of y.
        max_step_a: the largest dt/tau of a.
        max_step_b: the largest dt/tau of b and b0.
        recurrence: how Wr is constrained. Where nothing bounds it, Wr can grow until a single image
            drives the circuit out of bounds, and the gradient with it.
        muon_rate: the largest learning rate of Muon for the square matrices of the circuits, `Wr`
            and those by which the gains depend on `y` and `a`; 0 leaves them to AdamW.
    """

    on_off: bool
    integrators: bool
    max_step_y: float
    max_step_a: float
    max_step_b: float
    recurrence: str
    muon_rate: float = 0.0

    def hidden_matrices(self, model: "Classifier") -> list[nn.Parameter]:
        """The circuits' square matrices, but `W`, whose parameters are logits."""
        if self.muon_rate == 0.0 or model.cell is None:
            return []
        free = model.cell.free_parameters()
        return [free[name] for name in HIDDEN_MATRICES if name in free]

    @property
    def hidden_rate(self) -> float:
        """As the recipe has it."""
        return self.muon_rate

    @property
    def coarsest(self) -> int:
        """The largest number of pixels that are averaged to one step while training."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ClippedRecipe(SequenceRecipe):
    """A recipe that may clip.

    Attributes:
        clip_norm: the largest norm of a gradient, to which larger ones are scaled; None is never.
    """

    clip_norm: float | None

    @property
    def largest_norm(self) -> float | None:
        """As the recipe has it."""
        return self.clip_norm


@dataclass(frozen=True)
class Architecture:
    """What a model is, as checkpoints, metrics and weights record it.

    Attributes:
        model: the recurrent layer.
        hidden_size: its units; neurons of each type in ORGaNICs.
        resize: the images' side in pixels.
        permuted: whether the pixels come in the fixed random order.
        fixed_time_constants: whether the time constants are not learned.
    """

    model: ModelName
    hidden_size: int
    resize: int
    permuted: bool
    fixed_time_constants: bool

    def __post_init__(self) -> None:
        """Refuses values that a damaged file may hold; the command line has been checked."""
        for name, valid, expected in (
            ("model", self.model in get_args(ModelName), " or ".join(get_args(ModelName))),
            ("hidden_size", _is_count(self.hidden_size), "1 at least"),
            ("resize", _is_count(self.resize) and self.resize <= SIDE, f"1 to {SIDE}"),
            ("permuted", isinstance(self.permuted, bool), "true or false"),
            ("fixed_time_constants", isinstance(self.fixed_time_constants, bool), "true or false"),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    def __str__(self) -> str:
        parts = [self.model, str(self.hidden_size), f"{self.resize}x{self.resize}"]
        parts += ["permuted"] * self.permuted + ["fixed"] * self.fixed_time_constants
        return "-".join(parts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


class Classifier(nn.Module):
    """A recurrent layer that sees an image pixel by pixel, and a linear read-out of its output.

    Args:
        architecture: which layer.
        recipe: the steps of the circuits and how they are drawn.
    """

    order: Tensor
    first_state: Tensor

    def __init__(self, architecture: Architecture, recipe: SequenceRecipe) -> None:
        super().__init__()
        self.side = architecture.resize
        self.pixels_per_step = 1
        order = torch.arange(self.side**2)
        if architecture.permuted:
            generator = torch.Generator().manual_seed(PERMUTATION_SEED)
            order = torch.randperm(self.side**2, generator=generator)
        self.register_buffer("order", order)
        self.on_off = recipe.on_off
        inputs, size = 1 + recipe.on_off, architecture.hidden_size
        self.readout = nn.Linear(size, CLASSES)
        self.rnn: nn.LSTM | TimeStepper | ORGaNICsRNN
        if architecture.model != "organics":
            self.rnn = build_baseline(
                architecture.model,
                inputs,
                size,
                side=architecture.resize,
                permuted=architecture.permuted,
            )
            return
        self.rnn = ORGaNICsRNN(
            inputs,
            size,
            recurrence=recipe.recurrence,
            learn_time_constants=not architecture.fixed_time_constants,
            max_step_y=recipe.max_step_y,
            max_step_a=recipe.max_step_a,
            max_step_b=recipe.max_step_b,
        )
        state = self.rnn.rest_state() if recipe.integrators else self.rnn.draw_state()
        self.register_buffer("first_state", torch.cat(state))
        if recipe.integrators and self.cell is not None:
            start_as_integrators(self.cell, steps=self.side**2 // recipe.coarsest)
            with torch.no_grad():
                self.readout.weight *= READOUT_GAIN
                if self.cell.recurrence == "bounded":
                    self.readout.weight *= BOUNDED_GAIN

    @property
    def cell(self) -> ORGaNICsCell | None:
        """The circuits; None in another layer."""
        return next((part for part in self.modules() if isinstance(part, ORGaNICsCell)), None)

    def sequences(self, images: Tensor) -> Tensor:
        """Maps images `(N, 28, 28)` to what each step shows of them, `(T, N, 1 or 2)`."""
        shrunk = F.interpolate(images.unsqueeze(1), size=(self.side, self.side), mode="area")
        pixels = shrunk.flatten(1)[:, self.order].T
        if self.pixels_per_step > 1:
            pixels = pixels.unflatten(0, (-1, self.pixels_per_step)).mean(1)
        return torch.stack([pixels, 1 - pixels] if self.on_off else [pixels], -1)

    def coarsen(self, pixels_per_step: int) -> None:
        """Shows the average of so many pixels at a step, and makes the steps longer.

        The continuous system stays the same; the weights are those of one pixel a step.
        """
        if isinstance(self.rnn, ORGaNICsRNN | TimeStepper):
            self.rnn.step_scale = float(pixels_per_step)
        self.pixels_per_step = pixels_per_step

    def outputs(self, images: Tensor) -> Tensor:
        """Maps images `(N, 28, 28)` to the layer's output after every step, `(T, N, n)`."""
        return self._run(images)[0]

    def last_state(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images `(N, 28, 28)` to the layer's last state, the output `(1, N, n)` first."""
        return self._run(images)[1]

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 28, 28)` to scores `(N, 10)`."""
        # Of the last state: the last of all outputs would get a gradient for each of them.
        return self.readout(self.last_state(images)[0][-1])

    def _run(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All outputs, and the last state, the output `(1, N, n)` first."""
        if isinstance(self.rnn, nn.LSTM):
            return self.rnn(self.sequences(images))
        if isinstance(self.rnn, TimeStepper):
            outputs, last = self.rnn(self.sequences(images))
            return outputs, (last.unsqueeze(0),)
        state = self.first_state.unsqueeze(1).expand(-1, len(images), -1)
        return self.rnn(self.sequences(images), State(*state.unsqueeze(1)))


@torch.no_grad()
def start_as_integrators(cell: ORGaNICsCell, steps: int) -> None:
    """Starts the neurons as leaky integrators with a wide range of time constants.

    Each excites itself alone (Wr = I) and is normalized weakly, so that it remembers what it has
    seen for tau / sqrt(a) steps; dt/tau are log-uniform, so that some remember many rows of an
    image and others tell neighbouring pixels apart.

    Args:
        cell: the circuits.
        steps: of an image.
    """
    size = cell.hidden_size
    slowest = min(FASTEST, SLOWEST_TIMES_STEPS / steps)
    if cell.recurrence == "bounded":  # Wr and W start like that by themselves
        cell.gain_weight_y *= BOUNDED_GAIN
        cell.baseline_gain_weight_y *= BOUNDED_GAIN
    else:
        cell.recurrent_weight = torch.eye(size)
        cell.normalization_weight = LARGEST_NORMALIZATION * (1 - torch.rand(size, size))
    for part in State._fields:
        step = cell.max_steps[part[0]] * FASTEST * (slowest / FASTEST) ** torch.rand(size)
        if cell.learn_time_constants:
            setattr(cell, f"step_{part}", step)
        else:
            getattr(cell, f"step_{part}").copy_(step)
