"""The files of a run's folder: written whole or not at all, and read back with care."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from program.errors import ExampleError
from program.files import write_atomically

METRICS = "metrics.json"
WEIGHTS = "model.safetensors"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """All that the rest of a run depends on.

    No state of a random generator is among it: every epoch seeds its own (`training.derive_seed`).

    Attributes:
        identity: what a run must have in common with this one to continue it.
        epoch: the epochs finished.
        seconds: the running time so far.
        model: the weights.
        average: the state of their moving average.
        optimizers: the states of the optimizers and of their schedules, by name.
        best: the epoch, validation accuracy and weights of the best average so far.
        history: what was observed after each epoch.
    """

    identity: dict[str, Any]
    epoch: int
    seconds: float
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: dict[str, Any]
    best: dict[str, Any]
    history: list[dict[str, float | None]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint to a run's folder and keeps the one before it."""
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(folder / f"checkpoint-{checkpoint.epoch:06d}.pt", buffer.getvalue())
    for outdated in _newest_first(folder)[KEPT_CHECKPOINTS:]:
        outdated.unlink()


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Reads the newest readable checkpoint of a folder, which must belong to the same run.

    Args:
        folder: the run's folder.
        identity: what the continued run is; anything else in the checkpoint is an error.

    Returns:
        The checkpoint, its tensors on the CPU.
    """
    paths = _newest_first(folder)
    if not paths:
        raise ExampleError(f"--resume found no checkpoint in {folder}; expected checkpoint-*.pt")
    for path in paths:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint = Checkpoint(**content)
        except Exception as error:  # a damaged file makes the unpickler raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{path} cannot be read ({reason}); using the one before it", flush=True)
            continue
        _check_identity(checkpoint.identity, identity, path)
        return checkpoint
    raise ExampleError(
        f"--resume found no readable checkpoint among the {len(paths)} in {folder}; "
        "start anew with another --out"
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    differences = [
        f"{key} is {found.get(key)!r} there and {expected.get(key)!r} here"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]
    if differences:
        raise ExampleError(f"--resume: {path} is of another run: {'; '.join(differences)}")
