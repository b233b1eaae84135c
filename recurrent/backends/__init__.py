"""How a sequence is computed: one file per backend, chosen by name or automatically."""

from typing import NamedTuple

from deq_organics.dispatch import Choice as PartChoice

from .base import Backend, Sequence
from .cuda import CudaBackend
from .fused import FusedBackend
from .reference import ReferenceBackend

__all__ = [
    "AUTO",
    "Backend",
    "Choice",
    "Sequence",
    "backend_names",
    "choose",
    "register",
    "with_parts",
]

AUTO = "auto"

# In the order in which `auto` asks them; the last one can compute everything.
_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CudaBackend(), FusedBackend(), ReferenceBackend())
}


class Choice(NamedTuple):
    """The backend that computes a sequence, and why those before it do not."""

    backend: Backend
    reason: str


def backend_names() -> tuple[str, ...]:
    """Names that the argument ``backend`` takes."""
    return (AUTO, *_BACKENDS)


def register(backend: Backend) -> None:
    """Add a backend; ``auto`` asks it before those that are there."""
    if backend.name in (AUTO, *_BACKENDS):
        raise ValueError(f"backend: the name {backend.name!r} is taken, expected a new one")
    present = dict(_BACKENDS)
    _BACKENDS.clear()
    _BACKENDS.update({backend.name: backend, **present})


def choose(name: str, sequence: Sequence) -> Choice:
    """The backend of that name, or with ``"auto"`` the first that can compute the sequence.

    Raises:
        RuntimeError: The named backend cannot compute the sequence.
    """
    if name != AUTO:
        refusal = _BACKENDS[name].refusal(sequence)
        if refusal is not None:
            raise RuntimeError(
                f"backend: got {name!r}, which does not support {refusal}; "
                "expected 'reference' or 'auto' here"
            )
        return Choice(_BACKENDS[name], "named")
    reasons: list[str] = []
    for backend in _BACKENDS.values():
        refusal = backend.refusal(sequence)
        if refusal is None:
            return Choice(backend, "; ".join(reasons) or "first choice")
        reasons.append(f"{backend.name} does not support {refusal}")
    raise RuntimeError(f"backend: no backend can compute this: {'; '.join(reasons)}")


def with_parts(whole: Choice, parts: dict[str, PartChoice]) -> Choice:
    """``whole``; where a part is not computed by the like of it, the reason says so."""
    kernels = "cuda" if whole.backend.name == "cuda" else "torch"
    told = [
        f"; its {part} by {choice.backend} ({choice.reason})"
        for part, choice in parts.items()
        if choice.backend != kernels
        or (choice.reason not in whole.reason and choice.reason != "named")
    ]
    return whole._replace(reason=whole.reason + "".join(told))
