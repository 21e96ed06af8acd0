"""Analytic rules for the MLP's form and tiles, and reasons to refuse a form."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch

from crossmae_kernels.primitives.tiles import GemmTiles, gemm_tiles
from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.launch import Configuration, dot_extent

# The limit of the single-kernel form: the float32 sums of 64 rows of 256 take 64 registers of each of 256 threads, and
# with a chunk of the hidden layer beside them there is no room for 512.
WIDEST_SINGLE = 256

Hidden = Literal["save", "recompute"]


@dataclass(frozen=True)
class SingleTiles(Configuration):
    """Rows per program, hidden units per chunk, warps, and pipeline depth."""

    block_m: int
    block_h: int
    num_warps: int
    num_stages: int


def form_rule(width: int, dtype: torch.dtype, limits: Limits) -> str:
    """``single`` if it can run the call, else ``tiled``; ``library`` in float32.

    In 16 bits, cuBLAS's products write the hidden layer of each row for a GELU pass and read it again: four times 2 H
    bytes, of which ``tiled`` moves two and ``single`` none. At D = 512, H = 2048 the pass costs 8 KiB per row, 2.7 ns
    at 3 TB/s; the 4.2 MFLOP of both products take 5 to 7 ns. The price of ``single`` is that every 64 rows read all
    weights from L2, 64 FLOP per byte, like a 128 x 128 tile in ``tiled``. float32 products run outside the tensor
    cores, where they are slow and passes comparatively cheap, so cuBLAS's are best.
    """
    if dtype == torch.float32:
        return "library"
    fits = width <= WIDEST_SINGLE and single_shared_memory(width, limits) <= limits.shared_memory
    return "single" if fits else "tiled"


def backward_form(dtype: torch.dtype) -> str:
    """The same for the backward pass through the hidden layer, which has no single-kernel form."""
    return "library" if dtype == torch.float32 else "tiled"


@functools.cache
def single_tiles(width: int, limits: Limits) -> SingleTiles:
    """The analytic choice for the single-kernel form, in 16 bits.

    The output's float32 sums take 64 registers of each of 256 threads, in either shape; with chunks of 64
    some architectures spilled, and with a pipeline the small Blackwells did.
    """
    return SingleTiles(128 if width <= 128 else 64, 32, 8, 1 if limits.capability >= 120 else 2)


def single_shared_memory(width: int, limits: Limits) -> int:
    """Bytes for normalised rows and, per stage, a chunk of both weights."""
    choice = single_tiles(width, limits)
    return 2 * dot_extent(width) * (choice.block_m + 2 * choice.num_stages * choice.block_h)


@functools.cache
def hidden_tiles(hidden: int, width: int, element_size: int, saved: bool, limits: Limits) -> GemmTiles:
    """Tiles of the backward pass through the saved or recomputed hidden layer.

    If recomputed, its accumulator is beside the other product's, so tiles are half as wide as for one product. If
    saved, it is not; but if tensor cores need operands in registers, only such tiles leave room for a second program.
    """
    choice = gemm_tiles(hidden, width, element_size, limits)
    whole = element_size == 4 or (saved and limits.multiplies_from_shared_memory)
    return choice if whole else replace(choice, block_n=min(64, choice.block_n))


def single_refusals(width: int, dtype: torch.dtype, limits: Limits) -> list[str]:
    """Every reason why the single-kernel form cannot run a call."""
    reasons = []
    if dtype == torch.float32:
        reasons.append("it computes in 16 bits, but these weights are torch.float32")
    if width > WIDEST_SINGLE:
        return [*reasons, f"it holds rows of up to {WIDEST_SINGLE}, but these have {width}"]
    needed = single_shared_memory(width, limits)
    if needed > limits.shared_memory:
        reasons.append(f"it needs {needed} bytes of shared memory, but the device has {limits.shared_memory}")
    return reasons
