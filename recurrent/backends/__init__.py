"""How a sequence is computed: one file per backend, chosen by name or automatically."""

from deq_organics.dispatch import AUTO, Choice, Registry

from .base import Backend, SequenceWork
from .cuda import CudaBackend
from .fused import FusedBackend
from .native import NativeBackend
from .reference import ReferenceBackend

__all__ = [
    "AUTO",
    "Backend",
    "Choice",
    "SequenceWork",
    "backend_names",
    "choose",
    "register",
    "with_parts",
]

_BACKENDS: Registry[SequenceWork, Backend] = Registry(
    CudaBackend(), NativeBackend(), FusedBackend(), ReferenceBackend()
)

backend_names = _BACKENDS.names
register = _BACKENDS.register
choose = _BACKENDS.choose


def with_parts(whole: Choice[Backend], parts: dict[str, Choice[str]]) -> Choice[Backend]:
    """``whole``; where a part is not computed by the like of it, the reason says so."""
    kernels = "cuda" if whole.backend.name == "cuda" else "torch"
    told = [
        f"; its {part} by {choice.backend} ({choice.reason})"
        for part, choice in parts.items()
        if choice.backend != kernels
        or (choice.reason not in whole.reason and choice.reason != "named")
    ]
    return whole._replace(reason=whole.reason + "".join(told))
