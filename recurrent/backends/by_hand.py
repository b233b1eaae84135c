"""What backends share that go forward and back by hand, as one autograd function."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from deq_organics.checks import is_transformed, refuse_transforms
from deq_organics.plain_tensors import plain

from ..dynamics import Model, State
from ..precision import full_precision
from ..tracing import is_tracing
from .base import SequenceWork
from .folding import Folded, fold

__all__ = ["Forward", "Passes", "refuse_by_hand", "run_by_hand"]


class Forward(NamedTuple):
    """The results of a sequence, and what its way back needs."""

    ys: Tensor
    """``y`` after every step, ``(T, B, n)``."""
    y: Tensor
    a: Tensor
    gains: Tensor
    """``b`` beside ``b0`` after the last step, ``(B, 2n)``."""
    kept: tuple[Tensor | None, ...]


class Passes(Protocol):
    """A backend's ways forward and back, in the folded parameters.

    All tensors that they get are contiguous: they may be written through views and read by kernels.
    """

    name: str

    def forward(
        self,
        model: Model,
        weights: Folded,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gains: Tensor,
        keep: bool,
    ) -> Forward:
        """Step through ``x`` from the state ``y``, ``a`` ``(B, n)`` and ``gains`` ``(B, 2n)``."""

    def backward(
        self,
        model: Model,
        weights: Folded,
        kept: tuple[Any, ...],
        grads: list[Tensor | None],
        wanted: list[bool],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``y``, ``a``, ``gains`` and the folded parameters."""


def refuse_by_hand(sequence: SequenceWork) -> str | None:
    """Why no backend of this kind can compute the sequence; None if it can."""
    if is_tracing():
        return "torch.export and other tracers"
    return refuse_transforms(sequence.tensors())


def run_by_hand(passes: Passes, sequence: SequenceWork) -> tuple[Tensor, State]:
    """``y`` after every step, ``(T, B, n)``, and the last state, differentiable once."""
    y, a, *gains = sequence.state
    arguments = (sequence.x, y, a, torch.cat(gains, -1), *fold(sequence.parameters).flat())
    needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
    ys, y, a, stacked = _ByHand.apply(passes, sequence.model, needed, *arguments)
    return ys, State(y, a, *stacked.chunk(2, -1))


class _ByHand(torch.autograd.Function):
    """``(x, y, a, g) -> (ys, y_T, a_T, g_T)``; ``g`` stacks both gains, ``(B, 2n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        model: Model,
        needed: bool,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gains: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y, a, gains, *flat = map(plain, (x, y, a, gains, *weights))
        run = passes.forward(model, Folded.of(flat), x, y, a, gains, needed)
        ctx.set_materialize_grads(False)
        if needed:
            ctx.passes, ctx.model, ctx.count = passes, model, len(run.kept)
            ctx.save_for_backward(*run.kept, *flat)
        return run.ys, run.y, run.a, run.gains

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backend: second derivatives (create_graph=True) were asked of "
                f"{ctx.passes.name!r}, which computes first derivatives; "
                "expected backend='reference' for them"
            )
        present = [grad for grad in grads if grad is not None]
        if any(is_transformed(grad) or is_legacy_batchedtensor(grad) for grad in present):
            raise RuntimeError(
                "backend: batched gradients (vectorize=True, is_grads_batched=True, torch.func) "
                f"were asked of {ctx.passes.name!r}, which computes one gradient at a time; "
                "expected backend='reference' for them"
            )
        # Once: checkpoints hand each saved tensor out a single time. Hooks of the caller's may give
        # them other strides.
        saved: list[Any] = [None if part is None else plain(part) for part in ctx.saved_tensors]
        kept, flat = tuple(saved[: ctx.count]), saved[ctx.count :]
        _, _, _, *wanted = ctx.needs_input_grad
        given = [None if grad is None else plain(grad) for grad in grads]
        # Autograd runs this within the caller's autocast on a CPU.
        with full_precision(saved[-1].device):
            found = ctx.passes.backward(ctx.model, Folded.of(flat), kept, given, wanted)
        return None, None, None, *found
