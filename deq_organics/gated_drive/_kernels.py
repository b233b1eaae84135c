"""The gated input drive of a layer and its gradient as Triton kernels, one row a program."""

import triton
import triton.language as tl


@triton.jit
def _unit_length(x):
    """``x / |x|`` and ``|x|``; the squares neither overflow nor vanish.

    Where ``x`` is 0 so is the first, and the second infinite: there no derivative is left.
    """
    largest = tl.max(tl.abs(x), axis=0)
    largest = tl.where(largest == 0.0, 1.0, largest)
    x = x / largest
    length = tl.sqrt(tl.sum(x * x, axis=0))
    zero = length == 0.0
    return x / tl.where(zero, 1.0, length), tl.where(zero, float("inf"), length * largest)


@triton.jit
def gated_drive_kernel(drives, logits, gated, n, N: tl.constexpr):
    """``sigmoid(logit) drive / |drive|``."""
    index = tl.arange(0, N)
    inside, at = index < n, tl.program_id(0).to(tl.int64) * n + index
    unit, _ = _unit_length(tl.load(drives + at, mask=inside, other=0.0))
    gain = 1.0 / (1.0 + tl.exp(-tl.load(logits + at, mask=inside, other=0.0)))
    tl.store(gated + at, gain * unit, mask=inside)


@triton.jit
def gated_drive_gradient_kernel(
    drives, logits, grads, grads_drives, grads_logits, n, N: tl.constexpr
):
    """Gradients of :func:`gated_drive_kernel` by both its arguments."""
    index = tl.arange(0, N)
    inside, at = index < n, tl.program_id(0).to(tl.int64) * n + index
    unit, length = _unit_length(tl.load(drives + at, mask=inside, other=0.0))
    gain = 1.0 / (1.0 + tl.exp(-tl.load(logits + at, mask=inside, other=0.0)))
    grad = tl.load(grads + at, mask=inside, other=0.0)
    tl.store(grads_logits + at, grad * unit * gain * (1.0 - gain), mask=inside)
    grad = grad * gain
    tl.store(grads_drives + at, (grad - unit * tl.sum(unit * grad, axis=0)) / length, mask=inside)
