"""A sequence in one call for each thread: C kernels that take tiles of samples through all steps.

A step is written as in :mod:`..fused`, with the time constants folded into the weights. A tile of
samples walks from the first step to the last with its state in the caches, and back; samples do not
talk to each other. The weights are packed once, and the element-wise work follows a panel's
products at once. Kept for the way back are ``y``, ``a``, ``f`` and ``u``, five values per neuron
and step, and the gains before each segment of steps.

The gradients of the weights are summed per thread, in single precision, and the threads' sums are
added in their order: a result depends on the number of threads, and on nothing else.
"""

import torch
from torch import Tensor

from deq_organics.native import native_refusal

from ...dynamics import State
from ..base import SequenceWork
from ..by_hand import refuse_by_hand, run_by_hand
from .passes import NativePasses
from .self_check import native_failure

__all__ = ["NativeBackend"]


class NativeBackend:
    """First derivatives of everything, in single precision, on a CPU."""

    name = "native"

    def refusal(self, sequence: SequenceWork) -> str | None:
        if sequence.x.dtype != torch.float32:
            return f"{sequence.x.dtype}, only float32"
        # Tracers first: they cannot follow the search for a library.
        refusal = refuse_by_hand(sequence) or native_refusal(sequence.x.device)
        return refusal or native_failure(sequence)

    def run(self, sequence: SequenceWork) -> tuple[Tensor, State]:
        return run_by_hand(NativePasses(), sequence)
