"""The files of a program: written whole or not at all, in a folder that held nothing."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from program.errors import ExampleError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one, never half."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes standard JSON (no NaN), atomically."""
    text = json.dumps(content, indent=2, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def open_new_folder(folder: Path) -> None:
    """Makes the folder of a new run; refuses one that holds anything, so that nothing is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".tmp")
    except OSError as error:
        raise ExampleError(f"--out {folder} cannot be made a folder ({error})") from error
    if found:
        raise ExampleError(
            f"--out {folder} already holds {found[0]}; expected a new or empty folder, "
            "or --resume to continue the run that is there"
        )
