"""Options that shape a module's function, kept in its state dict and compared on loading.

Weights alone do not tell which function they belong to: two modules may have the same parameters
and a different exponent. The options travel as one entry of the state dict, a ``uint8`` tensor of
JSON, which every format for tensors can hold.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .caller_warnings import warn_caller

__all__ = ["Option", "SavedOptionsError", "SavesOptions", "check_saved_options"]

Option = bool | int | float | str | None

# torch's name of the entry that get_extra_state() fills.
_ENTRY = "_extra_state"


class SavedOptionsError(ValueError, RuntimeError):
    """A state dict belongs to a module with other options.

    It is a RuntimeError too, like each of torch's own refusals to load a state dict.
    """


class SavesOptions(nn.Module):
    """A module whose state dict holds the options that shape its function.

    ``load_state_dict`` raises :class:`SavedOptionsError` for a state dict with other options,
    before it changes this module or a module inside of it. A state dict without options loads with
    a warning.
    """

    former_names: ClassVar[Mapping[str, str]] = {}
    """Options that had another name when older state dicts were saved: today's by that name."""

    def shaping_options(self) -> dict[str, Option]:
        """The options, by the names of the constructor's arguments; finite numbers only."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        text = json.dumps(self.shaping_options(), sort_keys=True, allow_nan=False)
        return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to set: the options are compared before anything is loaded."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        check_saved_options(self, state_dict, prefix)
        for path, module in _modules_with_options(self):
            # An absent entry is no missing key, and warned of once.
            state_dict.setdefault(f"{prefix}{path}{_ENTRY}", module.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def check_saved_options(module: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> None:
    """Compare the options in a state dict with those of ``module`` and of all modules inside.

    ``load_state_dict`` of a container of other modules gets to a module with options only after
    it has loaded what stands before it; this function looks at all of them beforehand.

    Args:
        module: Any module.
        state_dict: The entries of ``module.state_dict()``, which may be those of another module.
        prefix: What comes before the names of the entries.

    Raises:
        SavedOptionsError: Options differ; the message names each with its saved and own value.
    """
    differences: list[str] = []
    unchecked: list[str] = []
    for path, inner in _modules_with_options(module):
        start = f"{prefix}{path}"
        if not any(name.startswith(start) for name in state_dict):
            continue
        entry = f"{start}{_ENTRY}"
        saved = {
            inner.former_names.get(name, name): value
            for name, value in _decode(state_dict.get(entry), entry).items()
        }
        own = inner.shaping_options()
        unchecked += [f"{start}{name}" for name in own if name not in saved]
        differences += [
            f"{start}{name}: saved with {value!r}, "
            + (f"here {own[name]!r}" if name in own else "here no such option")
            for name, value in saved.items()
            if name not in own or own[name] != value
        ]
    if differences:
        raise SavedOptionsError(
            f"state_dict: got other options than those of this {type(module).__name__} "
            f"({'; '.join(differences)}), expected the same; nothing was loaded into it"
        )
    if unchecked:
        warn_caller(
            "the state dict does not say with which options its weights were saved; not checked: "
            f"{', '.join(unchecked)}",
            UserWarning,
        )


def _modules_with_options(module: nn.Module) -> Sequence[tuple[str, SavesOptions]]:
    """``module`` and the modules inside that save options, by their prefix in its state dict."""
    return [
        (f"{name}." if name else "", inner)
        for name, inner in module.named_modules(remove_duplicate=False)
        if isinstance(inner, SavesOptions)
    ]


def _decode(entry: Any, name: str) -> dict[str, Option]:
    """The options in an entry; none where it is absent or holds no values (on meta)."""
    if entry is None or (isinstance(entry, Tensor) and entry.is_meta):
        return {}
    try:
        # Half precision and float32 hold these small integers exactly.
        options = json.loads(bytes(int(byte) for byte in entry.flatten().tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise SavedOptionsError(
            f"{name}: got {type(entry).__name__}, expected the options that state_dict() wrote "
            f"there as a uint8 tensor ({error})"
        ) from error
    if not isinstance(options, dict):
        raise SavedOptionsError(f"{name}: got {options!r}, expected a dict of options")
    return options
