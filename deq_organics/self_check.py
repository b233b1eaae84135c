"""Whether a Triton kernel computes on this device what torch does, tried before its first use.

A kernel is compiled for the device, solves a small random problem and is compared with torch in
float64, on the CPU. That is done once a process for each variant that the compiler makes of it
(its padded size, its options), in a thread of its own: grad mode, autocast, transforms, default
devices and streams of whoever needs the kernel are not seen there, and random numbers come from a
generator of its own. The compiled kernel is the one that is used afterwards, so that a check costs
little beside the compilation, which is due anyway.

What this cannot catch: a kernel that breaks the process's CUDA context. Then CUDA raises.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Deviation", "compare", "failure", "generator"]

_LONGEST_MESSAGE = 200
# By the kernels' family, the device and the variant: None, or why the check failed.
_RESULTS: dict[tuple[str, torch.device, Hashable], str | None] = {}
_LOCK = threading.Lock()


class Deviation(Exception):
    """A kernel's numbers are not torch's."""


def compare(name: str, found: Tensor, exact: Tensor, accepted: float) -> None:
    """Raise :class:`Deviation` if the relative error, by Euclidean norms, is not accepted."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    error = float((found - exact).norm() / exact.norm().clamp_min(1e-30))
    if not error <= accepted:
        raise Deviation(f"{name} deviates by {error:.1e} from torch, accepted are {accepted:.0e}")


def generator() -> torch.Generator:
    """Of the checks' random numbers, on the CPU; torch's own ones stay as they are."""
    return torch.Generator("cpu").manual_seed(0)


@torch.compiler.disable
def failure(
    family: str, device: torch.device, variant: Hashable, check: Callable[[torch.device], None]
) -> str | None:
    """Why these kernels cannot be used there, as part of a sentence; None if they can.

    ``check`` raises where the variant fails. It launches kernels without autograd: the caller may
    be a backward pass, which a second one on the same device would wait for.
    """
    key = (family, device, variant)
    if key in _RESULTS:
        return _RESULTS[key]
    if _is_capturing(device):
        # Not kept: after the capture the check can be made.
        return f"a capturing stream before the first use of its {family}, which checks it"
    with _LOCK:
        if key not in _RESULTS:
            _RESULTS[key] = _run(family, device, check)
    return _RESULTS[key]


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _run(family: str, device: torch.device, check: Callable[[torch.device], None]) -> str | None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            with torch.no_grad():
                check(device)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"self-check of the {family}")
    thread.start()
    thread.join()
    if not errors:
        return None
    return f"this device: the self-check of its {family} failed: {_describe(errors[0])}"


def _describe(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]}..."
    if isinstance(error, Deviation):
        return message
    return f"{type(error).__name__}: {message}"
