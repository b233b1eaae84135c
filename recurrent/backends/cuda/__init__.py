r"""A sequence in one launch: Triton kernels that walk through all of its steps.

A step is written as in :mod:`..fused`, with the time constants folded into the weights. One program
steps a tile of samples from the first step to the last, its state in registers, so that programs
wait for nobody; the weights come from the L2 cache. The kernel of the adjoint emits the gradients
of each step's ``u``, ``a'``, gates and drive; those of the weights are a few large products
afterwards.

Kept for the backward pass are ``y``, ``a``, ``u``, ``f`` and the gains, seven values per neuron and
step; the drive is computed anew.

The state is float32. ``torch.set_float32_matmul_precision`` chooses the operands of products, here
as for ``torch.mm``: ``"highest"``, torch's default, is accurate to float32 (three products in TF32
for one), ``"high"`` is TF32 and ``"medium"`` bfloat16.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deq_organics._triton import kernel_refusal
from deq_organics._validation import is_transformed

from ...dynamics import Model, State
from ..base import Sequence
from ..folding import Folded, fold
from .backward import Kept, run_backward
from .forward import run_forward
from .tiles import LARGEST_HIDDEN_SIZE

__all__ = ["CudaBackend"]


class CudaBackend:
    """First derivatives of everything, in single precision, on NVIDIA GPUs."""

    name = "cuda"

    def refusal(self, sequence: Sequence) -> str | None:
        tensors = list(sequence.tensors())
        if any(is_transformed(tensor) for tensor in tensors):
            return "torch.func transforms"
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            return "forward-mode derivatives"
        if (refusal := kernel_refusal(sequence.x.device)) is not None:
            return refusal
        if sequence.x.dtype != torch.float32:
            return f"{sequence.x.dtype}, only float32"
        if (size := sequence.state.y.shape[-1]) > LARGEST_HIDDEN_SIZE:
            return f"a hidden size of {size}, only up to {LARGEST_HIDDEN_SIZE}"
        return None

    def run(self, sequence: Sequence) -> tuple[Tensor, State]:
        y, a, *gains = sequence.state
        arguments = (sequence.x, y, a, torch.cat(gains, -1), *fold(sequence.parameters).flat())
        needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(sequence.x):
            ys, y, a, stacked = _CudaSequence.apply(sequence.model, needed, *arguments)
        return ys, State(y, a, *stacked.chunk(2, -1))


class _CudaSequence(torch.autograd.Function):
    """``(x, y, a, g) -> (ys, y_T, a_T, g_T)``; ``g`` stacks both gains, ``(B, 2n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        needed: bool,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        gains: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = run_forward(model, Folded.of(flat), x, y, a, gains, keep=needed)
        ctx.set_materialize_grads(False)
        if needed:
            ctx.model = model
            ctx.save_for_backward(
                x, run.ys, run.activities, run.gates, run.recurrent, run.gains, *flat
            )
        return run.ys[-len(x) :], run.y, run.a, run.last_gains

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backend: second derivatives (create_graph=True) were asked of 'cuda', which "
                "computes first derivatives; expected backend='reference' for them"
            )
        x, ys, activities, gates, recurrent, gains, *flat = ctx.saved_tensors
        kept = Kept(x, ys[:-1], activities[:-1], gates, recurrent, gains)
        _, _, *wanted = ctx.needs_input_grad
        return None, None, *run_backward(ctx.model, Folded.of(flat), kept, grads, wanted)
