"""How a sequence's work is cut for the GPU, and how its weights are laid out."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..folding import Folded

__all__ = [
    "ADJOINT_TILES",
    "FORWARD_TILES",
    "LARGEST_HIDDEN_SIZE",
    "Precision",
    "Tile",
    "adjoint_tile",
    "chosen_precision",
    "forward_tile",
    "pack",
]


class Precision(NamedTuple):
    """What a product of the state makes of its operands."""

    dtype: torch.dtype
    """Of the weights as they are stored."""
    dot: str
    """Triton's name for it, `input_precision`."""


@dataclass(frozen=True)
class Tile:
    """The work of a program, and the program's resources."""

    padded: int
    """Neurons, padded to a power of two."""
    rows: int
    """Rows of a block of a matrix."""
    columns: int
    """Columns of that block."""
    group: int
    """Blocks that are fetched and multiplied together, as far as it divides those of a step."""
    warps: int
    samples: int = 8
    """Sequences of a program: few, so that a small batch occupies many multiprocessors."""

    def arguments(
        self, weights: Folded, precision: Precision, device: torch.device
    ) -> dict[str, Any]:
        """The kernels' constants that describe the tile, and the options of their launch."""
        blocks = (self.padded // self.rows) * (self.padded // self.columns)
        blocks *= len(_matrices(weights))
        block_bytes = self.rows * self.columns * precision.dtype.itemsize
        fitting = (_shared_memory(device) - _OTHER_SHARED_MEMORY) // block_bytes
        # Blocks to split in three, one at a time beside those on their way; else those multiplied
        # lie beside them.
        split = precision.dot == "tf32x3"
        ahead = max(1, fitting - 1 if split else fitting)
        largest = math.gcd(self.group, blocks)
        group = max(d for d in range(1, min(largest, ahead) + 1) if largest % d == 0)
        return {
            "PADDED": self.padded,
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "GROUP": group,
            "SAMPLES": self.samples,
            "STAGES": min(_MOST_STAGES, int(split) + ahead // group),
            "PRECISION": precision.dot,
            "num_warps": self.warps,
            "enable_fp_fusion": True,
        }


def _shared_memory(device: torch.device) -> int:
    """Bytes of a program's shared memory; as much as an H100 has under Triton's interpreter."""
    if device.type != "cuda":
        return 232448
    # Not all of torch's type stubs know the one that is needed.
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


# Chosen by what the compiler makes of them: no registers spilled or few, and as many products at a
# time as registers and shared memory hold. The adjoint has more state than the circuit.
FORWARD_TILES = {
    16: Tile(16, 16, 16, group=6, warps=1),
    32: Tile(32, 32, 32, group=3, warps=2),
    64: Tile(64, 64, 64, group=3, warps=4),
    128: Tile(128, 128, 64, group=2, warps=8),
    256: Tile(256, 256, 32, group=2, warps=16),
}
ADJOINT_TILES = dict(FORWARD_TILES)
LARGEST_HIDDEN_SIZE = max(FORWARD_TILES)
_MOST_STAGES = 4
# For operands of the state, and for moving tiles between layouts.
_OTHER_SHARED_MEMORY = 24 * 1024


def forward_tile(neurons: int) -> Tile:
    """The tile in which a layer of that many neurons is stepped."""
    return FORWARD_TILES[_padded(neurons)]


def adjoint_tile(neurons: int) -> Tile:
    """The tile in which its adjoint is."""
    return ADJOINT_TILES[_padded(neurons)]


def _padded(neurons: int) -> int:
    return max(min(FORWARD_TILES), 1 << (neurons - 1).bit_length())


def chosen_precision() -> Precision:
    """What torch's own float32 products are allowed to do at the moment."""
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return Precision(torch.float32, "tf32x3")
    try:
        bfloat16 = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:
        # It was set by the newer of torch's two options, which has no such choice.
        bfloat16 = False
    return Precision(torch.bfloat16 if bfloat16 else torch.float32, "tf32")


def pack(weights: Folded, tile: Tile, dtype: torch.dtype, *, transpose: bool) -> Tensor:
    """``W``, ``Wby``, ``Wba``, ``Wb0y``, ``Wb0a``, ``Wr`` or their transposes, block by block.

    Returns ``(matrices, padded / rows, padded / columns, rows, columns)``, padded with zeros, of
    those matrices that the circuit has.
    """
    matrices = _matrices(weights)
    n, size = weights.normalization_weight.shape[-1], tile.padded
    packed = matrices[0].new_zeros(len(matrices), size, size, dtype=dtype)
    for place, matrix in zip(packed, matrices, strict=True):
        place[:n, :n] = matrix.mT if transpose else matrix
    blocks = (size // tile.rows, tile.rows, size // tile.columns, tile.columns)
    return packed.view(len(matrices), *blocks).transpose(2, 3).contiguous()


def _matrices(weights: Folded) -> list[Tensor]:
    found = [weights.normalization_weight]
    if weights.gates is not None:
        of_y, of_a = weights.gates.weight_y.chunk(2), weights.gates.weight_a.chunk(2)
        found += [of_y[0], of_a[0], of_y[1], of_a[1]]
    if not weights.identity:
        found.append(weights.recurrent_weight)
    return found
