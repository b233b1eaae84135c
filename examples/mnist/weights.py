"""Trained weights as safetensors files, with what is known about them in their metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from program.errors import ExampleError
from program.files import write_atomically

# One entry, because safetensors writes several in no fixed order: equal runs leave equal files.
METADATA_KEY = "deq_organics"


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes weights and what is known about them (anything that JSON holds), atomically."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    text = json.dumps(metadata, allow_nan=False)
    write_atomically(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: text}))


def find_weights(name_or_file: str, shipped: Path) -> Path:
    """The file of shipped weights by their model's name, or a file of the user's.

    Args:
        name_or_file: a model's name such as "80:80", or a path.
        shipped: the folder of the shipped weights; ":" is "-" in their file names.
    """
    by_name = shipped / f"{name_or_file.replace(':', '-')}.safetensors"
    for candidate in (by_name, Path(name_or_file)):
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in shipped.glob("*.safetensors"))
    raise ExampleError(
        f"--evaluate {name_or_file} is neither a file nor the name of shipped weights; "
        f"shipped are: {', '.join(names) or 'none'}"
    )


def load_weights(path: Path, example: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights that an example has written.

    Args:
        path: the safetensors file.
        example: the example's name, which the metadata must repeat.

    Returns:
        The tensors by name, on the CPU, and the metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ExampleError(
            f"--evaluate {path} cannot be read ({error}); expected a complete safetensors file"
        ) from error
    if metadata.get("example") != example:
        raise ExampleError(
            f"--evaluate {path} was written by {metadata.get('example')!r}; expected {example!r}"
        )
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ExampleError(f"--evaluate {path} has values that are not finite in {broken[0]}")
    return weights, metadata


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Puts weights into a model, which must have exactly these names and shapes."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        # torch's list of differences has a headline; an error about options has one line only.
        first_difference = str(error).splitlines()[:2][-1].strip()
        raise ExampleError(
            f"--evaluate {path} does not fit the model: {first_difference}"
        ) from error
