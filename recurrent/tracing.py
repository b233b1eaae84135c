"""Whether torch records a program of its own in place of running this one."""

import torch

__all__ = ["is_exporting", "is_tracing"]


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work.

    ``torch.compiler.is_exporting()`` is true under ``torch.compile`` as well in torch 2.11.
    """
    return bool(torch.compiler._is_exporting_flag)


def is_tracing() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` is at work."""
    return is_exporting() or torch._C._get_tracing_state() is not None
