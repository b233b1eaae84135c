"""By what a part of a computation is done: torch everywhere, or CUDA kernels where they apply.

They apply where they can take the tensors and have passed their self-check on the device.
"""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["BACKENDS", "Choice", "choose_part", "with_parts"]

BACKENDS = ("auto", "torch", "cuda")


class Choice(NamedTuple):
    """The backend, ``"torch"`` or ``"cuda"``, and why."""

    backend: str
    reason: str


def choose_part(
    name: str, part: str, refusal: str | None, self_check: Callable[[], str | None]
) -> Choice:
    """By what a part of a module is computed that has a kernel of its own.

    Torch takes what the kernel cannot, also where the module's backend is ``"cuda"``; ``refusal``
    says why the kernel cannot.

    Raises:
        RuntimeError: The named backend is ``"cuda"``, and the kernel fails its self-check.
    """
    if name == "torch":
        return Choice(name, "named")
    if refusal is not None:
        return Choice("torch", f"cuda does not support {refusal}")
    if (failure := self_check()) is not None:
        if name == "cuda":
            raise RuntimeError(
                f"backend: got 'cuda', which does not support {failure}; "
                f"expected 'torch' or 'auto' here, for the {part}"
            )
        return Choice("torch", f"cuda does not support {failure}")
    return Choice("cuda", "named" if name == "cuda" else "first choice")


def with_parts(whole: Choice, parts: dict[str, Choice]) -> Choice:
    """``whole``; where a part is computed otherwise, or for another reason, this says so."""
    told = [
        f"; its {part} by {choice.backend} ({choice.reason})"
        for part, choice in parts.items()
        if choice != whole
    ]
    return whole._replace(reason=whole.reason + "".join(told))
