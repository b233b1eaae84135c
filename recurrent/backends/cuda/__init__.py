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

import torch
from torch import Tensor

from deq_organics.triton_support import kernel_refusal

from ...dynamics import State
from ..base import SequenceWork
from ..by_hand import refuse_by_hand, run_by_hand
from .passes import CudaPasses
from .self_check import sequence_failure
from .tiles import LARGEST_HIDDEN_SIZE

__all__ = ["CudaBackend"]


class CudaBackend:
    """First derivatives of everything, in single precision, on NVIDIA GPUs.

    Each variant of the kernels passes a self-check before its first use in a process.
    """

    name = "cuda"

    def refusal(self, sequence: SequenceWork) -> str | None:
        if (refusal := kernel_refusal(sequence.x.device)) is not None:
            return refusal
        if sequence.x.dtype != torch.float32:
            return f"{sequence.x.dtype}, only float32"
        if (size := sequence.state.y.shape[-1]) > LARGEST_HIDDEN_SIZE:
            return f"a hidden size of {size}, only up to {LARGEST_HIDDEN_SIZE}"
        return refuse_by_hand(sequence) or sequence_failure(sequence)

    def run(self, sequence: SequenceWork) -> tuple[Tensor, State]:
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(sequence.x):
            return run_by_hand(CudaPasses(), sequence)
