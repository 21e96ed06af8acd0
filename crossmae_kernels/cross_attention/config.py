"""Tile sizes of the cross-attention kernels: an analytic rule."""

from dataclasses import dataclass
from typing import Literal

# Up to this many keys a whole row of scores stays on chip.
MOST_KEYS_ON_CHIP = 128

# Wider heads would not leave room for the tiles of a backward pass.
WIDEST_HEAD = 128

Kernel = Literal["short_forward", "short_backward", "looped_forward", "looped_backward_query", "looped_backward_key"]


@dataclass(frozen=True)
class Tiles:
    """Configuration of one kernel: queries and keys per tile, warps per program, depth of software pipelines."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


def padded(count: int) -> int:
    """The tile extent that holds ``count``: a power of two, at least 16 as matrix instructions ask."""
    return max(16, 1 << (count - 1).bit_length())
