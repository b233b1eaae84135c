"""A benchmark's report: figures that are kept as they come in, and failures that end nothing."""

import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from harness.output import machine, save_json, write_json

__all__ = ["RESULTS", "Report", "results_file"]

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def results_file(benchmark: str, device: str) -> Path | None:
    """Where figures go unless said otherwise: those of a GPU under its name, a CPU's nowhere."""
    if not device.startswith("cuda"):
        return None
    words = torch.cuda.get_device_name(device).lower().split()
    return RESULTS / f"{benchmark}-{'-'.join(words)}.json"


class Report:
    """The record of one run: written to its JSON file whenever something is added.

    Args:
        benchmark: Its name.
        options: A dataclass with ``device`` and ``out`` among its fields.
    """

    def __init__(self, benchmark: str, options: Any) -> None:
        self.path = options.out or results_file(benchmark, options.device)
        self.failures: dict[str, str] = {}
        self.record: dict[str, Any] = {
            "benchmark": benchmark,
            "machine": machine(options.device),
            "options": {
                name: str(value) if isinstance(value, Path) else value
                for name, value in asdict(options).items()
                # Paths of the machine say nothing about the figures.
                if name not in ("out", "published", "weights")
            },
            "failures": self.failures,
        }
        print(", ".join(f"{name} {value}" for name, value in self.record["machine"].items()))

    def add(self, **parts: Any) -> None:
        """Add parts to the record, and write it."""
        self.record.update(parts)
        if self.path is not None:
            write_json(self.path, self.record)

    def attempt(self, what: str, action: Callable[..., T]) -> T | None:
        """The action's result; where it fails, None, and its error under the name ``what``."""
        try:
            return action()
        except Exception as error:
            traceback.print_exc()
            self.failures[what] = f"{type(error).__name__}: {error}"
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:
            torch.cuda.empty_cache()
        return None

    def failed(self, label: str) -> str:
        """Lines on what failed under names that begin with ``label``, each error's first line."""
        return "\n".join(
            f"FAILED {what}: {error.splitlines()[0]}"
            for what, error in self.failures.items()
            if what.startswith(label)
        )

    def close(self) -> int:
        """Write the record, list the failures, and return the exit status: 1 if there are any."""
        save_json(self.path, self.record)
        if self.failures:
            print(f"{len(self.failures)} failures\n{self.failed('')}")
        return 1 if self.failures else 0
