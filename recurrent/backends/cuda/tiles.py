"""How a sequence's work is cut for the GPU, and how its weights are laid out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..folding import Folded

__all__ = ["LARGEST_HIDDEN_SIZE", "Tile", "pack", "precision", "tile_for"]


@dataclass(frozen=True)
class Tile:
    """The work of a program, and the program's resources."""

    padded: int
    """Neurons, padded to a power of two."""
    rows: int
    """Rows of the block of a matrix that is multiplied at a time."""
    columns: int
    """Columns of that block."""
    warps: int
    samples: int = 8
    """Sequences of a program: few, so that a small batch occupies many multiprocessors."""

    def stages(self, dtype: torch.dtype, device: torch.device) -> int:
        """Blocks of operands of that dtype in use or on their way, as Triton's ``num_stages``.

        One more than fit into shared memory: the newest is not there yet.
        """
        block = self.rows * self.columns * dtype.itemsize
        return min(_MOST_STAGES, 1 + (_shared_memory(device) - _OTHER_SHARED_MEMORY) // block)


def _shared_memory(device: torch.device) -> int:
    """Bytes of a program's shared memory; as much as an H100 has under Triton's interpreter."""
    if device.type != "cuda":
        return 232448
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


# Blocks of at most 64 KiB in float32, of which a program on an H100 holds three.
_TILES = {
    tile.padded: tile
    for tile in (
        Tile(16, 16, 16, warps=1),
        Tile(32, 32, 32, warps=2),
        Tile(64, 64, 64, warps=4),
        Tile(128, 128, 128, warps=8),
        Tile(256, 256, 64, warps=16),
    )
}
LARGEST_HIDDEN_SIZE = max(_TILES)
_MOST_STAGES = 4
# For operands of the state, and for moving tiles between layouts.
_OTHER_SHARED_MEMORY = 24 * 1024


def tile_for(neurons: int) -> Tile:
    """The tile for a layer of that many neurons."""
    return _TILES[max(min(_TILES), 1 << (neurons - 1).bit_length())]


def precision() -> tuple[torch.dtype, str]:
    """The dtype of the products' operands, and Triton's name for what is done with them."""
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return torch.float32, "tf32x3"
    try:
        bfloat16 = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:
        # It was set by the newer of torch's two options, which has no such choice.
        bfloat16 = False
    return torch.bfloat16 if bfloat16 else torch.float32, "tf32"


def pack(weights: Folded, tile: Tile, dtype: torch.dtype, *, transpose: bool) -> Tensor:
    """``Wr``, ``W``, ``Wby``, ``Wba``, ``Wb0y``, ``Wb0a`` or their transposes, block by block.

    Returns ``(6, padded / rows, padded / columns, rows, columns)``, padded with zeros. A matrix
    that the circuit lacks is not written: no kernel reads it.
    """
    n = weights.normalization_weight.shape[-1]
    size, rows, columns = tile.padded, tile.rows, tile.columns
    like = weights.normalization_weight
    packed = torch.zeros(6, size, size, dtype=dtype, device=like.device)
    matrices = {1: weights.normalization_weight}
    if not weights.identity:
        matrices[0] = weights.recurrent_weight
    if weights.gates is not None:
        matrices |= {2: weights.gates.weight_y[:n], 4: weights.gates.weight_y[n:]}
        matrices |= {3: weights.gates.weight_a[:n], 5: weights.gates.weight_a[n:]}
    for index, matrix in matrices.items():
        packed[index, :n, :n] = matrix.mT if transpose else matrix
    blocks = packed.view(6, size // rows, rows, size // columns, columns).transpose(2, 3)
    return blocks.contiguous()
