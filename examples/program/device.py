"""Where a program computes."""

import torch

from program.errors import ExampleError


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ExampleError("--device is cuda, which this machine's torch cannot use; expected cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
