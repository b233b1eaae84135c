"""By what something is computed: backends, asked in order, and why one was chosen.

Both packages choose by this module: sequences in `recurrent`, steady states in `deq_organics`, and
the parts of a module that have a kernel of their own.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = ["AUTO", "BACKENDS", "Backend", "Choice", "Registry", "choose_part", "with_parts"]

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


def choose_part(
    name: str, part: str, refusal: str | None, self_check: Callable[[], str | None]
) -> Choice[str]:
    """By what a part of a module is computed that has a kernel of its own.

    Torch takes what the kernel cannot, also where the module's backend is ``"cuda"``; ``refusal``
    says why the kernel cannot.

    Raises:
        RuntimeError: The named backend is ``"cuda"``, and the kernel fails its self-check.
    """
    if name == "torch":
        return Choice(name, "named")
    if name == "native":
        return Choice("torch", "native has no kernel of it")
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


def with_parts(whole: Choice[str], parts: dict[str, Choice[str]]) -> Choice[str]:
    """``whole``; where a part is computed otherwise, or for another reason, this says so."""
    told = [
        f"; its {part} by {choice.backend} ({choice.reason})"
        for part, choice in parts.items()
        if choice != whole
    ]
    return whole._replace(reason=whole.reason + "".join(told))
