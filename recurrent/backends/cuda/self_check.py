"""The self-check of the kernels of sequences: a small batch against the cell's own steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from deq_organics.self_check import compare, failure, generator

from ...dynamics import GainParameters, Model, Parameters, State
from ..base import SequenceWork
from ..folding import Folded, fold
from ..reference import ReferenceBackend
from .backward import Kept, run_backward
from .forward import run_forward
from .tiles import Precision, Tile, adjoint_tile, chosen_precision, forward_tile

__all__ = ["sequence_failure"]

_STEPS, _INPUTS = 3, 2
# Relative errors of states and gradients, by the products' operands.
_BOUNDS = {"tf32x3": (1e-5, 1e-4), "tf32": (5e-3, 2e-2), "bfloat16": (2e-2, 1e-1)}


class _Variant(NamedTuple):
    """What the compiler makes a program of its own for."""

    model: Model
    neurons: int
    identity: bool
    dynamic: bool
    differentiated: bool
    precision: Precision
    aligned: bool
    """Whether each step's part of a result begins at a multiple of 16 bytes."""
    tiles: tuple[Tile, Tile]


def sequence_failure(sequence: SequenceWork) -> str | None:
    """Why the kernels cannot be trusted with such sequences; None if they can."""
    samples, neurons = sequence.state.y.shape
    identity = sequence.parameters.recurrent_weight is None
    dynamic = sequence.parameters.gain is not None
    differentiated = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in sequence.tensors()
    )
    variant = _Variant(
        sequence.model,
        neurons,
        identity,
        dynamic,
        differentiated,
        chosen_precision(),
        samples * neurons % 4 == 0,
        (forward_tile(neurons), adjoint_tile(neurons)),
    )
    return failure(
        "sequence kernels", sequence.x.device, variant, lambda device: _check(variant, device)
    )


def _check(variant: _Variant, device: torch.device) -> None:
    """Raise where the kernels do not compute what the cell does in float64."""
    # More than one tile of samples, the last one incomplete.
    samples = variant.tiles[0].samples + (4 if variant.aligned else 1)
    sequence = _draw(variant, samples)
    leaves = [tensor.requires_grad_() for tensor in sequence.tensors()]
    with torch.enable_grad():
        folded = fold(sequence.parameters).flat()
        exact_ys, exact_last = ReferenceBackend().run(sequence)
        exact = (exact_ys, *exact_last[:2], torch.cat(exact_last[2:], -1))
        given = (sequence.x, *sequence.state[:2], torch.cat(sequence.state[2:], -1), *folded)
    x, y, a, pair, *flat = (part.detach().to(device, torch.float32) for part in given)
    weights = Folded.of(flat)
    kept = variant.differentiated
    with torch.cuda.device_of(x):
        run = run_forward(variant.model, weights, x, y, a, pair, kept)
    name = "bfloat16" if variant.precision.dtype == torch.bfloat16 else variant.precision.dot
    state_bound, gradient_bound = _BOUNDS[name]
    found = (run.ys[-_STEPS:], run.y, run.a, run.last_gains)
    for part, value, known in zip(("ys", "y", "a", "gains"), found, exact, strict=True):
        compare(part, value, known, state_bound)
    if not kept:
        return

    random = generator()
    drawn = [torch.randn(part.shape, generator=random, dtype=torch.float64) for part in exact]
    states = Kept(x, run.ys[:-1], run.activities[:-1], run.gates, run.recurrent, run.gains)
    # Without a gradient of the outputs the adjoint is a program of its own.
    for grads in (drawn, [None, *drawn[1:]]):
        weighed = [
            (part, grad) for part, grad in zip(exact, grads, strict=True) if grad is not None
        ]
        with torch.enable_grad():
            expected = _gradients([part for part, _ in weighed], [g for _, g in weighed], leaves)
        moved = [None if grad is None else grad.to(device, torch.float32) for grad in grads]
        with torch.cuda.device_of(x):
            by_folded = run_backward(variant.model, weights, states, moved, [True] * len(given))
        # From the folded parameters to the cell's, which autograd does outside of the kernels.
        back = [grad.double().cpu() for grad in by_folded if grad is not None]
        with torch.enable_grad():
            got = _gradients(list(given), back, leaves)
        for value, known in zip(got, expected, strict=True):
            compare("a gradient", value, known, gradient_bound)


def _gradients(
    outputs: list[Tensor], grads: list[Tensor], leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        outputs, leaves, grads, retain_graph=True, materialize_grads=True, allow_unused=True
    )


def _draw(variant: _Variant, samples: int) -> SequenceWork:
    """A random sequence in float64, with time constants of a few steps."""
    n, random = variant.neurons, generator()

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(*shape, generator=random, dtype=torch.float64)
        return low + (high - low) * drawn

    def gain() -> GainParameters:
        x, y, a = (uniform(n, k, low=-1.0) / k**0.5 for k in (_INPUTS, n, n))
        return GainParameters(x, y, a, uniform(n, low=0.1, high=0.4))

    parameters = Parameters(
        uniform(n, _INPUTS, low=-1.0),
        None if variant.identity else uniform(n, n, low=-1.0) / n**0.5,
        uniform(n, n) / n,
        uniform(n, low=0.5),
        uniform(n, low=0.1, high=0.4),
        uniform(n, low=0.1, high=0.4),
        gain() if variant.dynamic else None,
        gain() if variant.dynamic else None,
    )
    state = State(uniform(samples, n, low=-1.0), *(uniform(samples, n) for _ in range(3)))
    return SequenceWork(variant.model, parameters, uniform(_STEPS, samples, _INPUTS), state)
