"""Warnings that point to the caller's line, not into this library or torch."""

import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["warn_caller"]


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that belongs neither to torch nor to these packages.

    Where there is none (torch runs a GPU's backward pass in a thread of its own) the warning
    points to the outermost line.
    """
    # The argument skip_file_prefixes of warnings.warn is new with Python 3.12.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_own_folders()):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@cache
def _own_folders() -> tuple[str, ...]:
    specs = [find_spec(name) for name in ("deq_organics", "recurrent", "torch")]
    folders = [f"{Path(spec.origin).parent}/" for spec in specs if spec and spec.origin]
    # Code that torch generates has this for a file name.
    return (*folders, "<eval_with_key>")
