"""Which form serves the MLP, and with which tiles: analytic rules, and why a form is refused."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch

from crossmae_kernels.primitives.tiles import GemmTiles, gemm_tiles
from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.launch import Configuration, dot_extent

# Where the form with one kernel ends: the float32 sums of 64 rows of 256 take 64 registers of each of 256 threads, and
# with the chunk of the hidden layer beside them there is no room for 512.
WIDEST_SINGLE = 256

Hidden = Literal["save", "recompute"]


@dataclass(frozen=True)
class SingleTiles(Configuration):
    """Rows of a program, hidden units of a chunk, warps, and the depth of the software pipeline."""

    block_m: int
    block_h: int
    num_warps: int
    num_stages: int


def form_rule(width: int, dtype: torch.dtype, limits: Limits) -> str:
    """``single`` where it can serve, else ``tiled``; ``library`` in float32.

    For each row, in 16 bits, a library's products write the hidden layer for a pass of GELU and read it again: four
    times 2 H bytes, of which ``tiled`` moves two and ``single`` none. At D = 512, H = 2048 the pass costs 8 KiB a row,
    2.7 ns at 3 TB/s; the 4.2 MFLOP of both products take 5 to 7 ns. The price of ``single`` is that every 64 rows read
    all weights from L2, 64 FLOP for a byte, as a tile of 128 x 128 in ``tiled`` does. float32 multiplies outside of the
    tensor cores: there products are slow, passes are cheap beside them, and the library's products are best.
    """
    if dtype == torch.float32:
        return "library"
    fits = width <= WIDEST_SINGLE and single_shared_memory(width, limits) <= limits.shared_memory
    return "single" if fits else "tiled"


def backward_form(dtype: torch.dtype) -> str:
    """The same for the backward pass through the hidden layer, which has no form with one kernel."""
    return "library" if dtype == torch.float32 else "tiled"


@functools.cache
def single_tiles(width: int, limits: Limits) -> SingleTiles:
    """The analytic choice for the form with one kernel, in 16 bits.

    The output's float32 sums take 64 registers of each of 256 threads, in either shape; with chunks of 64 there were
    spills on one architecture or another, and with a pipeline some on the small Blackwells.
    """
    return SingleTiles(128 if width <= 128 else 64, 32, 8, 1 if limits.capability >= 120 else 2)


def single_shared_memory(width: int, limits: Limits) -> int:
    """Bytes for normalised rows and, for every stage, a chunk of both weights."""
    choice = single_tiles(width, limits)
    return 2 * dot_extent(width) * (choice.block_m + 2 * choice.num_stages * choice.block_h)


@functools.cache
def hidden_tiles(hidden: int, width: int, element_size: int, saved: bool, limits: Limits) -> GemmTiles:
    """Tiles of the backward pass through the hidden layer, which was saved or is recomputed.

    Recomputed, it stands beside the sum of the other product, so tiles are half as wide as those of a single one.
    Saved, it does not; but where tensor cores want operands in registers, only such tiles leave room for a second
    program.
    """
    choice = gemm_tiles(hidden, width, element_size, limits)
    whole = element_size == 4 or (saved and limits.multiplies_from_shared_memory)
    return choice if whole else replace(choice, block_n=min(64, choice.block_n))


def single_refusals(width: int, dtype: torch.dtype, limits: Limits) -> list[str]:
    """Every reason why the form with one kernel cannot serve a call."""
    reasons = []
    if dtype == torch.float32:
        reasons.append("it computes in 16 bits, these weights are torch.float32")
    if width > WIDEST_SINGLE:
        return [*reasons, f"it holds rows of up to {WIDEST_SINGLE}, these have {width}"]
    needed = single_shared_memory(width, limits)
    if needed > limits.shared_memory:
        reasons.append(f"it needs {needed} bytes of shared memory, the device has {limits.shared_memory}")
    return reasons
