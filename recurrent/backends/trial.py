"""A trial of a backend that goes by hand: a small batch against the cell's own steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from deq_organics.self_check import compare, generator

from ..dynamics import GainParameters, Model, Parameters, State
from .base import SequenceWork
from .by_hand import Passes
from .folding import Folded, fold
from .reference import ReferenceBackend

__all__ = ["Trial", "try_passes"]

_STEPS, _INPUTS = 3, 2


class Trial(NamedTuple):
    """The circuits of a trial, and the relative errors that it accepts."""

    model: Model
    samples: int
    neurons: int
    identity: bool
    dynamic: bool
    differentiated: bool
    state_bound: float
    gradient_bound: float


def try_passes(passes: Passes, trial: Trial, device: torch.device) -> None:
    """Raise where the passes do not compute in float32 what the cell does in float64."""
    sequence = _draw(trial)
    leaves = [tensor.requires_grad_() for tensor in sequence.tensors()]
    with torch.enable_grad():
        folded = fold(sequence.parameters).flat()
        exact_ys, exact_last = ReferenceBackend().run(sequence)
        exact = (exact_ys, *exact_last[:2], torch.cat(exact_last[2:], -1))
        given = (sequence.x, *sequence.state[:2], torch.cat(sequence.state[2:], -1), *folded)
    x, y, a, pair, *flat = (part.detach().to(device, torch.float32) for part in given)
    weights = Folded.of(flat)
    run = passes.forward(trial.model, weights, x, y, a, pair, trial.differentiated)
    for part, value, known in zip(("ys", "y", "a", "gains"), run[:4], exact, strict=True):
        compare(part, value, known, trial.state_bound)
    if not trial.differentiated:
        return

    random = generator()
    drawn = [torch.randn(part.shape, generator=random, dtype=torch.float64) for part in exact]
    # Without a gradient of the outputs the adjoint may be a program of its own.
    for grads in (drawn, [None, *drawn[1:]]):
        weighed = [
            (part, grad) for part, grad in zip(exact, grads, strict=True) if grad is not None
        ]
        with torch.enable_grad():
            expected = _gradients([part for part, _ in weighed], [g for _, g in weighed], leaves)
        moved = [None if grad is None else grad.to(device, torch.float32) for grad in grads]
        by_folded = passes.backward(trial.model, weights, run.kept, moved, [True] * len(given))
        # From the folded parameters to the cell's, which autograd does outside of the passes.
        back = [grad.double().cpu() for grad in by_folded if grad is not None]
        with torch.enable_grad():
            got = _gradients(list(given), back, leaves)
        for value, known in zip(got, expected, strict=True):
            compare("a gradient", value, known, trial.gradient_bound)


def _gradients(
    outputs: list[Tensor], grads: list[Tensor], leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        outputs, leaves, grads, retain_graph=True, materialize_grads=True, allow_unused=True
    )


def _draw(trial: Trial) -> SequenceWork:
    """A random sequence in float64, with time constants of a few steps."""
    n, samples, random = trial.neurons, trial.samples, generator()

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(*shape, generator=random, dtype=torch.float64)
        return low + (high - low) * drawn

    def gain() -> GainParameters:
        x, y, a = (uniform(n, k, low=-1.0) / k**0.5 for k in (_INPUTS, n, n))
        return GainParameters(x, y, a, uniform(n, low=0.1, high=0.4))

    parameters = Parameters(
        uniform(n, _INPUTS, low=-1.0),
        None if trial.identity else uniform(n, n, low=-1.0) / n**0.5,
        uniform(n, n) / n,
        uniform(n, low=0.5),
        uniform(n, low=0.1, high=0.4),
        uniform(n, low=0.1, high=0.4),
        gain() if trial.dynamic else None,
        gain() if trial.dynamic else None,
    )
    state = State(uniform(samples, n, low=-1.0), *(uniform(samples, n) for _ in range(3)))
    return SequenceWork(trial.model, parameters, uniform(_STEPS, samples, _INPUTS), state)
