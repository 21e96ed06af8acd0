"""Tile sizes of the mixing kernels by an analytic rule, where LayerNorm is computed, and reasons to refuse a call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import compute_dtype
from crossmae_kernels.runtime.device import Limits, dtypes_of, machine_refusals, mixture_refusals, width_refusals
from crossmae_kernels.runtime.launch import Configuration, dot_extent

# By element size in bytes: the most values of a token's mixes, padded, that a program holds in registers. With 12
# decoder blocks these are ViT-H's and, in float32, ViT-B's.
MOST_VALUES = {2: 16 * 1280, 4: 16 * 768}

# The same if upstream gradients are held beside them in the backward pass: ViT-L's and, in float32, ViT-S's. Wider ones
# are read a second time.
MOST_VALUES_OF_TWO = {2: 16 * 1024, 4: 16 * 384}

NUM_WARPS = 8

# Registers per thread if a program needs all that 8 warps can have. Otherwise the assembler may spill a few to let a
# second program run.
ALL_REGISTERS = 255


@dataclass(frozen=True)
class MixingTiles(Configuration):
    """Configuration of one kernel."""

    block_mixes: int
    """The number of a token's mixes, padded."""
    channels: int
    """Channels per warp in one panel."""

    @property
    def panel(self) -> int:
        """The number of channels in a panel."""
        return self.channels * NUM_WARPS

    def panels(self, width: int) -> int:
        """The number of panels in a row."""
        return -(-width // self.panel)


def forward_tiles(mixes: int, width: int, element_size: int) -> MixingTiles:
    """The analytic choice for tokens of ``width`` channels.

    A row is cut into panels, whose number need not be a power of two, so that 384, 768 or 1280 channels waste no
    registers. float32 products run outside the tensor cores, where a thread holds more operands at a time.
    """
    return MixingTiles(dot_extent(mixes), 16 if element_size == 4 or width <= 512 else 32)


def backward_tiles(mixes: int, width: int, element_size: int, on_chip: bool) -> MixingTiles:
    """The choice for the gradients; on chip, where all maps of a panel are loaded together, the narrowest panels."""
    return MixingTiles(dot_extent(mixes), 16) if on_chip else forward_tiles(mixes, width, element_size)


def sums_by_products(maps: Sequence[Tensor], weight: Tensor, limits: Limits) -> bool:
    """Whether the backward kernel that holds a token also computes sums on tensor cores, with concatenated panels.

    That leaves enough registers for ViT-B's tokens, and on Blackwell for ViT-S's; otherwise 2 to 204 spilled. float16
    weights may overflow when multiplied by a token's deviation.
    """
    mixes, width = weight.shape[0], maps[0].shape[2]
    fits = len(maps) <= 16 and dot_extent(mixes) * width <= 16 * (768 if limits.capability < 100 else 384)
    return weight.dtype == torch.bfloat16 and fits


def held(mixes: int, width: int, element_size: int) -> bool:
    """Whether a program holds whole tokens, so that LayerNorm needs no separate pass."""
    return dot_extent(mixes) * width <= MOST_VALUES[element_size]


def holds_upstream_gradients(mixes: int, width: int, element_size: int) -> bool:
    """Whether a program that holds tokens in the backward pass has room for the upstream gradients too."""
    return dot_extent(mixes) * width <= MOST_VALUES_OF_TWO[element_size]


def forward_stages(maps: int, width: int, element_size: int, shared_memory: int) -> int:
    """Depth of the forward kernel's pipeline: up to two tokens ahead, as far as their maps fit in shared memory.

    ``element_size`` is that of the maps. The backward kernels have no registers left to prefetch a whole token.
    """
    maps_of_a_token = dot_extent(maps) * width * element_size
    scratch = 16 * 1024
    return 1 + max(0, min(2, (shared_memory - scratch) // maps_of_a_token))


def forward_registers(element_size: int) -> int | None:
    """Registers per thread in the forward kernel; in 16 bits the assembler's own choice is better."""
    return ALL_REGISTERS if element_size == 4 else None


def backward_stages(maps: int, mixes: int, columns: int, map_size: int, element_size: int, limits: Limits) -> int:
    """Depth of the backward kernel's pipeline: two loads ahead if they fit in shared memory, else one.

    A load holds ``columns`` channels of all maps, with elements of ``map_size`` bytes, and of their mixes' gradients.
    In float32 there are no registers left for a pipeline, nor on Blackwell for ViT-H's 33 maps, of which 2 to 8
    spilled; the small Blackwells have none at all.
    """
    most_maps = 32 if limits.capability >= 100 else maps
    if element_size == 4 or limits.capability >= 120 or maps > most_maps:
        return 1
    load = columns * (dot_extent(maps) * map_size + dot_extent(mixes) * element_size)
    scratch = 9 * 1024
    return 3 if 2 * load + scratch <= limits.shared_memory else 2


def refusals(maps: Sequence[Tensor], weight: Tensor, *others: torch.dtype) -> list[str]:
    """Every reason why the kernels cannot run a call with these maps, mixing weights and ``others``."""
    return [
        *machine_refusals(weight.device, *dtypes_of(*maps), compute_dtype(weight), *others),
        *mixture_refusals("maps", maps),
        *width_refusals(maps[0].shape[-1]),
    ]
