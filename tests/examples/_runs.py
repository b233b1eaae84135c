"""The trained examples by name, the options of a short run of each, and what it leaves."""

import itertools
from pathlib import Path
from types import ModuleType

import torch

import smnist_bptt
import static_mnist
from mnist.weights import load_weights, save_weights

EXAMPLES: dict[str, ModuleType] = {"static_mnist": static_mnist, "smnist_bptt": smnist_bptt}
SMALL = {"static_mnist": {"model": "50:50"}, "smnist_bptt": {"hidden_size": "4", "resize": "4"}}


def short_run(example: str, **changes: str) -> list[str]:
    """The options of a run of seconds."""
    options = SMALL[example] | {"epochs": "2", "limit": "128", "device": "cpu"} | changes
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    return list(itertools.chain.from_iterable(pairs))


def rewrite(file: Path, example: str, changes: dict[str, object], **tensors: torch.Tensor) -> None:
    """Changes the metadata and the tensors of saved weights."""
    saved, metadata = load_weights(file, example)
    save_weights(file, saved | tensors, metadata | changes)
