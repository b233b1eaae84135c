"""By what something is computed: backends, asked in order, and why one was chosen.

Both packages choose by this module: sequences in `recurrent`, steady states in `deq_organics`, and
the parts of a module that have a kernel of their own.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = [
    "AUTO",
    "BACKENDS",
    "Backend",
    "Choice",
    "PartKernel",
    "Registry",
    "choose_part",
    "with_parts",
]

AUTO = "auto"
BACKENDS = (AUTO, "torch", "cuda", "native")

WorkT_contra = TypeVar("WorkT_contra", contravariant=True)
BackendT = TypeVar("BackendT")


class Backend(Protocol[WorkT_contra]):
    """One way to do some kind of work; what it does beside this, its own protocol says."""

    @property
    def name(self) -> str:
        """What the argument ``backend`` calls it."""

    def refusal(self, work: WorkT_contra, /) -> str | None:
        """Why this backend cannot do the work, as part of a sentence; None if it can."""


class Choice(NamedTuple, Generic[BackendT]):
    """The backend that computes something, or its name, and why those before it do not."""

    backend: BackendT
    reason: str


WorkT = TypeVar("WorkT")
MemberT = TypeVar("MemberT", bound=Backend)  # type: ignore[type-arg]


class Registry(Generic[WorkT, MemberT]):
    """Backends in the order in which ``auto`` asks them; the last one can compute everything."""

    def __init__(self, *backends: MemberT) -> None:
        self._backends = {backend.name: backend for backend in backends}

    def names(self) -> tuple[str, ...]:
        """Names that the argument ``backend`` takes."""
        return (AUTO, *self._backends)

    def register(self, backend: MemberT) -> None:
        """Add a backend; ``auto`` asks it before those that are there.

        Raises:
            ValueError: There is one of that name.
        """
        if backend.name in self.names():
            raise ValueError(f"backend: the name {backend.name!r} is taken, expected a new one")
        self._backends = {backend.name: backend, **self._backends}

    def choose(self, name: str, work: WorkT) -> Choice[MemberT]:
        """The backend of that name, or with ``"auto"`` the first that can do the work.

        Raises:
            RuntimeError: The named backend cannot do it.
        """
        if name != AUTO:
            refusal = self._backends[name].refusal(work)
            if refusal is not None:
                raise RuntimeError(
                    f"backend: got {name!r}, which does not support {refusal}; "
                    f"expected {list(self._backends)[-1]!r} or 'auto' here"
                )
            return Choice(self._backends[name], "named")
        reasons: list[str] = []
        for backend in self._backends.values():
            refusal = backend.refusal(work)
            if refusal is None:
                return Choice(backend, "; ".join(reasons) or "first choice")
            reasons.append(f"{backend.name} does not support {refusal}")
        raise RuntimeError(f"backend: no backend can compute this: {'; '.join(reasons)}")


class PartKernel(NamedTuple):
    """A kernel of a part of a module."""

    name: str
    """Of the backend that it belongs to."""
    refusal: Callable[[], str | None]
    """Why it cannot compute the part, as part of a sentence; None if it can."""
    self_check: Callable[[], str | None]
    """Why it cannot be trusted; asked only where it can compute the part."""


def choose_part(name: str, part: str, *kernels: PartKernel) -> Choice[str]:
    """By what a part of a module is computed that has kernels of its own, asked in order.

    Torch takes what they cannot, also where the module's backend ``name`` is that of a kernel.

    Raises:
        RuntimeError: The kernel of the named backend fails its self-check.
    """
    if name == "torch":
        return Choice(name, "named")
    reasons: list[str] = []
    for kernel in kernels:
        if name not in (AUTO, kernel.name):
            continue
        told = kernel.refusal()
        if told is None:
            told = kernel.self_check()
            if told is None:
                reason = "; ".join(reasons) or "first choice"
                return Choice(kernel.name, "named" if name == kernel.name else reason)
            if name == kernel.name:
                raise RuntimeError(
                    f"backend: got {name!r}, which does not support {told}; "
                    f"expected 'torch' or 'auto' here, for the {part}"
                )
        reasons.append(f"{kernel.name} does not support {told}")
    return Choice("torch", "; ".join(reasons) or f"{name} has no kernel of it")


def with_parts(whole: Choice[str], parts: dict[str, Choice[str]]) -> Choice[str]:
    """``whole``; where a part is computed otherwise, or for another reason, this says so."""
    told = [
        f"; its {part} by {choice.backend} ({choice.reason})"
        for part, choice in parts.items()
        if choice != whole
    ]
    return whole._replace(reason=whole.reason + "".join(told))
