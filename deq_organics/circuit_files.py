"""Circuits as safetensors files: their tensors, and their options in the metadata."""

import json
import os
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .checks import check_bool, check_number, is_transformed
from .problem import CORE_DIMENSIONS, Problem

__all__ = ["FORMAT_VERSION", "read_problem", "write_problem"]

FORMAT_VERSION = 1
# One entry, because safetensors writes several in no fixed order: equal circuits, equal files.
_ENTRY = "deq_organics.circuit"
_KEYS = {"format_version", "library_version", "exponent", "rectified", "tensors"}
_PRECISIONS = (torch.float32, torch.float64)


def write_problem(problem: Problem, path: str | os.PathLike[str]) -> None:
    """Write circuits whole or not at all: a kill leaves the old file or the new one.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: The circuits have no values to write: on meta, or inside ``torch.func``.
        OSError: The file cannot be written.
    """
    safetensors = _safetensors("save")
    target = _path(path)
    tensors = {}
    for name in CORE_DIMENSIONS:
        tensor = getattr(problem, name)
        if isinstance(tensor, Tensor):
            if tensor.is_meta or is_transformed(tensor):
                raise TypeError(f"{name}: got a tensor without values of its own, expected values")
            # A copy: safetensors takes no two tensors that share their memory.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    exponent = None if isinstance(problem.exponent, Tensor) else problem.exponent
    entry = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "exponent": exponent,
        "rectified": problem.rectified,
        "tensors": sorted(tensors),
    }
    text = json.dumps(entry, sort_keys=True, allow_nan=False)
    _write_atomically(target, safetensors.torch.save(tensors, metadata={_ENTRY: text}))


def read_problem(path: str | os.PathLike[str], device: torch.device | str) -> Problem:
    """The circuits of a file, their values not yet checked.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The file cannot be read.
        ValueError: The file holds no circuits, or what this version does not know.
    """
    safetensors = _safetensors("load")
    source = _path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path: got {source}, expected a file that Circuit.save wrote")
    try:
        with safetensors.safe_open(source, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"path: got {source}, which cannot be read ({error}), expected a complete file that "
            "Circuit.save wrote"
        ) from error
    options = _options(source, metadata)
    _check_tensors(source, options, tensors)
    exponent = tensors.get("exponent", options["exponent"])
    named = {name: tensors.get(name) for name in CORE_DIMENSIONS}
    return Problem(**{**named, "exponent": exponent, "rectified": options["rectified"]})


def _options(source: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The entry of the metadata, of which nothing is unknown."""

    def refuse(found: str, expected: str) -> ValueError:
        return ValueError(f"path: got {source} with {found}, expected {expected}")

    if _ENTRY not in metadata:
        raise refuse(f"no entry {_ENTRY!r} in its metadata", "a file that Circuit.save wrote")
    others = sorted(metadata.keys() - {_ENTRY})
    if others:
        raise refuse(f"unknown metadata {', '.join(map(repr, others))}", f"only {_ENTRY!r}")
    try:
        entry = json.loads(metadata[_ENTRY])
    except ValueError as error:
        raise refuse(f"options that are no JSON ({error})", "those of Circuit.save") from error
    if not isinstance(entry, dict):
        raise refuse(f"options {entry!r}", "a dict of options")
    version = entry.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise refuse(
            f"format version {version!r} (written by deq_organics "
            f"{entry.get('library_version')!r})",
            f"{FORMAT_VERSION}, the one that deq_organics {__version__} knows",
        )
    if entry.keys() != _KEYS:
        different = sorted(entry.keys() ^ _KEYS)
        raise refuse(f"unknown or missing options {different}", f"exactly {sorted(_KEYS)}")
    if entry["exponent"] is not None:
        entry["exponent"] = check_number("exponent", entry["exponent"], low=1.0, high=64.0)
    check_bool("rectified", entry["rectified"])
    return entry


def _check_tensors(source: Path, options: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise where the tensors are not those that the options name, or of an unknown kind."""
    optional = {"recurrent_weight", "exponent"}
    names, known = sorted(tensors), set(CORE_DIMENSIONS)
    required = known - optional | ({"exponent"} if options["exponent"] is None else set())
    allowed = known if options["exponent"] is None else known - {"exponent"}
    if names != options["tensors"] or not required <= set(names) <= allowed:
        raise ValueError(
            f"path: got {source} with the tensors {names}, expected those that its metadata names, "
            f"{options['tensors']}, all of them known"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in _PRECISIONS:
            raise ValueError(
                f"path: got {source} with {name} of {tensor.dtype}, expected float32 or float64"
            )


def _path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: got {type(path).__name__}, expected a str or a path")
    return Path(path)


def _safetensors(method: str) -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{method}: needs the package safetensors, which is not installed: "
            "pip install 'deq_organics[files]'"
        ) from error
    return safetensors


def _write_atomically(path: Path, content: bytes) -> None:
    """Through an unfinished file beside it, of a name that no other writer has."""
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
