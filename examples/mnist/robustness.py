"""What a trained sequence model does with inputs that it was not made for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist.data import Images
from mnist.sequence_model import SIDE, Classifier
from mnist.sequence_task import SequenceTask
from mnist.training import accuracy, in_batches
from mnist.trajectories import find_bounds
from recurrent import ORGaNICsCell, State
from recurrent.dynamics import euler_step

# Copies of a sequence one after the other, and of how many test images there are such copies.
REPEATS, REPEATED_IMAGES = 10, 100
ATTACKED_IMAGES, ASCENT_STEPS, ASCENT_RATE = 16, 60, 0.3
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
# Test images whose Lyapunov exponents are estimated, and the steps before which they are not.
EXPONENT_IMAGES, SETTLING_PART = 100, 0.1


@dataclass(frozen=True)
class Excursion:
    """How far inputs of one kind drive the states.

    Attributes:
        inputs: the kind.
        sequences: how many there were.
        steps: the length of each.
        largest: the largest magnitude of y, a, b and b0; infinite where a state is not finite.
    """

    inputs: str
    sequences: int
    steps: int
    largest: State


def excursions(model: Classifier, test: Images, seed: int) -> Iterator[Excursion]:
    """Drives the circuits with the test images and with inputs that no image resembles.

    Args:
        model: has circuits.
        test: the test images.
        seed: of the noise.
    """
    cell = _cell(model)
    first = State(*model.first_state)
    for name, batches in _kinds(model, test, seed):
        bounds = find_bounds(cell, first, batches)
        steps, count = len(batches[0]), sum(batch.shape[1] for batch in batches)
        yield Excursion(name, count, steps, State(*(part.cpu() for part in bounds.largest)))


def noisy_accuracies(model: Classifier, test: Images, seed: int) -> dict[float, float]:
    """The accuracy where Gaussian noise is added to every pixel, by its standard deviation.

    Pixels stay within [0, 1], for which alone the states' bound is stated.
    """
    found = {0.0: accuracy(SequenceTask(), model, test)}
    for deviation in NOISE:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(test.images.shape, generator=generator).to(test.images.device)
        noisy = (test.images + deviation * noise).clamp(0.0, 1.0)
        found[deviation] = accuracy(SequenceTask(), model, Images(noisy, test.labels))
    return found


@torch.no_grad()
def lyapunov_exponents(model: Classifier, images: Tensor, seed: int) -> Tensor:
    """The leading exponent along each image, per step, `(N,)`: a finite-time estimate.

    A tangent vector is carried along by the steps' Jacobians; its mean logarithmic growth after the
    first tenth of the steps is counted. Negative: neighbouring states approach each other.

    Args:
        model: has circuits.
        images: `(N, 28, 28)`.
        seed: of the first tangent vectors.
    """
    cell = _cell(model)
    parameters = cell.parameters_of_step()
    x = model.sequences(images)
    state = _repeated(model, x.shape[1])
    generator = torch.Generator().manual_seed(seed)
    tangent = State(*(torch.randn(part.shape, generator=generator).to(part) for part in state))
    counted_from = math.ceil(SETTLING_PART * len(x))
    growth = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for index, row in enumerate(x):
        tangent = _scaled(tangent, 1 / _length(tangent))

        def step(*parts: Tensor, row: Tensor = row) -> State:
            return euler_step(cell.model, parameters, row, State(*parts))

        state, tangent = torch.func.jvp(step, tuple(state), tuple(tangent))[:2]
        if index >= counted_from:
            growth += _length(tangent).double().log()
    return growth / (len(x) - counted_from)


def _kinds(model: Classifier, test: Images, seed: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Names of inputs, and batches of their sequences `(T, N, features)`."""
    yield "test images", [model.sequences(part.images) for part in in_batches(test)]
    device = test.images.device
    generator = torch.Generator().manual_seed(seed)
    line = torch.arange(SIDE)
    fields = {
        "white": torch.ones(1, SIDE, SIDE),
        "black": torch.zeros(1, SIDE, SIDE),
        "uniform noise": torch.rand(100, SIDE, SIDE, generator=generator),
        "binary noise": torch.rand(100, SIDE, SIDE, generator=generator).round(),
        "checkerboards": torch.stack(
            [((line[:, None] // size + line // size) % 2).float() for size in (1, 2, 4, 7, 14)]
        ),
        "stripes": torch.stack([(line // size % 2).float().expand(SIDE, -1) for size in (1, 2, 4)]),
    }
    for name, pictures in fields.items():
        once = model.sequences(pictures.to(device))
        yield f"{name}, {REPEATS} times", [once.repeat(REPEATS, 1, 1)]
    some = model.sequences(test.images[:REPEATED_IMAGES])
    yield f"test images, {REPEATS} times", [some.repeat(REPEATS, 1, 1)]
    worst = [
        model.sequences(_ascend(model, test.images[:ATTACKED_IMAGES], goal))
        for goal in (_largest_y, _largest_a)
    ]
    yield "found by gradient ascent", [torch.cat(worst, 1)]
    yield f"the same, {REPEATS} times", [torch.cat(worst, 1).repeat(REPEATS, 1, 1)]


def _ascend(
    model: Classifier, images: Tensor, goal: Callable[[Classifier, Tensor], Tensor]
) -> Tensor:
    """Images, from test images, whose pixels followed the gradient of a goal within [0, 1]."""
    free = images.clamp(0.05, 0.95).logit().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=ASCENT_RATE)
    for _ in range(ASCENT_STEPS):
        optimizer.zero_grad()
        (-goal(model, free.sigmoid()).sum()).backward()
        optimizer.step()
    return free.detach().sigmoid()


def _largest_y(model: Classifier, images: Tensor) -> Tensor:
    return model.outputs(images).abs().amax((0, 2))


def _largest_a(model: Classifier, images: Tensor) -> Tensor:
    return model.last_state(images)[1].amax((0, 2))


def _cell(model: Classifier) -> ORGaNICsCell:
    assert model.cell is not None
    return model.cell


def _repeated(model: Classifier, count: int) -> State:
    return State(*(part.repeat(count, 1) for part in model.first_state))


def _length(tangent: State) -> Tensor:
    """The Euclidean length of each sample's vector, `(N,)`."""
    return torch.stack([part.square().sum(-1) for part in tangent]).sum(0).sqrt()


def _scaled(tangent: State, factor: Tensor) -> State:
    return State(*(part * factor.unsqueeze(-1) for part in tangent))
