"""The loss's constant and reductions, reasons to refuse a call, and tile sizes by an analytic rule."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import machine_refusals
from crossmae_kernels.runtime.launch import Configuration, power_of_two
from crossmae_kernels.runtime.operators import need_gradient

Reduction = Literal["mean", "none"]

# Added to the variance of a target patch by MAE and CrossMAE alike.
VARIANCE_EPS = 1e-6

# Values of a tile per thread. A patch of 16 x 16 pixels in 3 channels then belongs to one warp, which needs no
# barriers: two warps issue 1.4 to 1.6 times as many instructions for its loss.
VALUES_PER_THREAD = 32

# Largest tile, for 16 warps. Patches of 64 x 64 pixels in 3 channels fit.
LARGEST_TILE = 16 * 1024

# Smallest tile; smaller patches share a program.
SMALLEST_TILE = 1024


@dataclass(frozen=True)
class PatchTiles(Configuration):
    """Configuration of one kernel: patches per program, warps per program."""

    patches: int
    num_warps: int


def tile_size(channels: int, sides: tuple[int, int]) -> int:
    """Values of one patch, each of its three dimensions padded."""
    return power_of_two(channels) * power_of_two(sides[0]) * power_of_two(sides[1])


@functools.cache
def tiles(size: int) -> PatchTiles:
    """The analytic choice for patches of ``size`` values: enough patches to fill a tile, and warps to hold it."""
    patches = max(1, SMALLEST_TILE // size)
    return PatchTiles(patches, max(1, patches * size // (32 * VALUES_PER_THREAD)))


def candidates(size: int) -> list[PatchTiles]:
    """Neighbours of the analytic choice, for tuning to try."""
    rule = tiles(size)
    return [
        PatchTiles(patches, warps)
        for patches in (max(1, rule.patches // 2), rule.patches, 2 * rule.patches)
        for warps in (1, 2, 4, 8, 16)
        if patches * size <= LARGEST_TILE
    ]


def refusals(
    images: Tensor, sides: tuple[int, int], mean: Tensor | None, std: Tensor | None, rows: torch.dtype
) -> list[str]:
    """Every reason why the kernels cannot run a call with these images and rows of that dtype."""
    pixels = [] if images.dtype == torch.uint8 else [images.dtype]
    reasons = machine_refusals(images.device, *pixels, rows)
    if tile_size(images.shape[1], sides) > LARGEST_TILE:
        reasons.append(
            f"kernels support patches of up to {LARGEST_TILE} values with channels and sides padded to powers of two,"
            f" but these have {images.shape[1]} x {sides[0]} x {sides[1]}"
        )
    if need_gradient(mean, std):
        reasons.append("the kernels have no gradient for mean and std, but these need one")
    return reasons


def loss_refusals(
    images: Tensor, sides: tuple[int, int], mean: Tensor | None, std: Tensor | None, rows: torch.dtype
) -> list[str]:
    """The same for the loss, whose kernel has no gradient for the images."""
    reasons = refusals(images, sides, mean, std, rows)
    if need_gradient(images):
        reasons.append("the kernels have no gradient for the images, but these need one")
    return reasons
