"""Tile sizes of the primitives, by analytic rules. Nothing here needs Triton, so choices can be made without it."""

import functools
from dataclasses import dataclass

from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.launch import Configuration, power_of_two

# Row tiles that share column tiles before the next ones start, so that their weights are still in L2.
GROUP = 8


@dataclass(frozen=True)
class GemmTiles(Configuration):
    """Rows, columns and inner extent of a program's tiles, its warps, and the depth of its software pipeline."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    """Registers of a thread, where so many leave room for a second program."""


@functools.cache
def gemm_tiles(outer: int, inner: int, element_size: int, limits: Limits) -> GemmTiles:
    """The analytic choice for rows times a weight ``(outer, inner)``.

    In 16 bits a tile of 128 x 128 takes 64 registers of each of 256 threads for its sum, and does 64 FLOP for each
    byte that it asks of L2; every stage of 64 of the inner extent takes 32 KiB of shared memory. Columns come in
    fewer where 128 would leave more than an eighth of the tiles empty. Where operands come from shared memory, 128
    registers of a thread are enough, and registers and stages leave room for a second program: one multiplies while
    the other is in its epilogue. Where instructions want operands in registers, there is no such room. float32
    multiplies outside of the tensor cores, where operands need registers too.
    """
    if element_size == 4:
        return GemmTiles(64, 32, 32, 8, 2)
    block_n = next((block for block in (128, 64) if 8 * (-outer % block) <= outer), 32)
    # Of rows that 16 does not divide each element is loaded by itself: of 64 of the inner extent, 8 to 204 spilled.
    block_k = 64 if inner > 32 and inner % 16 == 0 else 32
    stage = (128 + block_n) * block_k * element_size
    warps = 8 if block_n > 32 else 4
    programs = 2 if limits.multiplies_from_shared_memory else 1
    stages = max(2, min(4, limits.shared_memory // (programs * stage)))
    return GemmTiles(128, block_n, block_k, warps, stages, 128 if (programs, block_n) == (2, 128) else None)


def gemm_candidates(outer: int, inner: int, element_size: int, limits: Limits) -> list[GemmTiles]:
    """Neighbours of the analytic choice, for tuning to try."""
    return [
        GemmTiles(block_m, block_n, block_k, warps, stages)
        for block_m in (64, 128)
        for block_n in (64, 128, 256)
        for block_k in (32, 64)
        for warps in (4, 8)
        for stages in (2, 3, 4)
        if stages * (block_m + block_n) * block_k * element_size <= limits.shared_memory
        and block_m * block_n <= 128 * 32 * warps
    ]


@dataclass(frozen=True)
class RowTiles(Configuration):
    """Rows and columns of a program's tile, and its warps."""

    block_rows: int
    block_columns: int
    num_warps: int


@functools.cache
def row_tiles(width: int) -> RowTiles:
    """Whole rows, 4096 elements or more: 32 for each of 128 threads, which is 4 to 8 wide loads in flight."""
    block_columns = power_of_two(width)
    block_rows = max(1, 4096 // block_columns)
    return RowTiles(block_rows, block_columns, max(4, block_columns // 1024))
