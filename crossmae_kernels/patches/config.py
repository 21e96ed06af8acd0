"""What reference and kernels share: the loss's constant and its reductions; tile sizes by an analytic rule."""

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "none"]

# Added to the variance of a target patch by MAE and CrossMAE alike.
VARIANCE_EPS = 1e-6

# Values of a tile that each thread holds. A patch of 16 x 16 pixels in 3 channels is then one warp's, which needs no
# barriers: two warps issue 1.4 to 1.6 times as many instructions for its loss.
VALUES_PER_THREAD = 32

# Largest tile, for 16 warps. Patches of 64 x 64 pixels in 3 channels fit.
LARGEST_TILE = 16 * 1024

# Smallest tile; smaller patches share a program.
SMALLEST_TILE = 1024


@dataclass(frozen=True)
class Tiles:
    """Configuration of one kernel: patches per program, warps per program."""

    patches: int
    num_warps: int


def padded(count: int) -> int:
    """The tile extent that holds ``count``: a power of two."""
    return 1 << int(count - 1).bit_length()  # NumPy's integers have none


def tile_size(channels: int, patch_size: int) -> int:
    """Values of one patch, each of its three dimensions padded."""
    return padded(channels) * padded(patch_size) ** 2


def tiles(size: int) -> Tiles:
    """The analytic choice for patches of so many values: enough of them to fill a tile, and warps to hold it."""
    patches = max(1, SMALLEST_TILE // size)
    return Tiles(patches, max(1, patches * size // (32 * VALUES_PER_THREAD)))


def candidates(size: int) -> list[Tiles]:
    """Neighbours of the analytic choice, for tuning to try."""
    rule = tiles(size)
    return [
        Tiles(patches, warps)
        for patches in (max(1, rule.patches // 2), rule.patches, 2 * rule.patches)
        for warps in (1, 2, 4, 8, 16)
        if patches * size <= LARGEST_TILE
    ]
