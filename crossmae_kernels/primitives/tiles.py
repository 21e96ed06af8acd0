"""Tile sizes of the primitives, by analytic rules that do not need Triton."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.launch import Configuration, power_of_two

# Row tiles that share column tiles before the next group starts, so their weights are still in L2.
GROUP = 8


@dataclass(frozen=True)
class GemmTiles(Configuration):
    """Rows, columns and inner extent of a program's tiles, its warps and its pipeline depth."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    """Registers per thread, if limiting them makes room for a second program."""


@functools.cache
def gemm_tiles(outer: int, inner: int, element_size: int, limits: Limits) -> GemmTiles:
    """The analytic choice for rows times a weight ``(outer, inner)``.

    In 16 bits the accumulator of a 128 x 128 tile takes 64 registers of each of 256 threads, and the tile does 64 FLOP
    per byte from L2; every stage of 64 of the inner extent takes 32 KiB of shared memory. Tiles are narrower if 128
    columns would leave more than an eighth of the tiles empty. If operands come from shared memory, 128 registers per
    thread are enough, and registers and stages leave room for a second program: one multiplies while the other is in
    its epilogue. If instructions need operands in registers, there is no such room. float32 products run outside the
    tensor cores, where operands need registers too.
    """
    if element_size == 4:
        return GemmTiles(64, 32, 32, 8, 2)
    block_n = next((block for block in (128, 64) if 8 * (-outer % block) <= outer), 32)
    # If 16 does not divide the rows, elements are loaded one by one: with an inner extent of 64, 8 to 204 spilled.
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
class PersistentTiles(GemmTiles):
    """Tiles of persistent programs, which process one tile after the other."""

    specialized: bool = False
    """Whether copies, products and the epilogue have separate warps."""

    @property
    def programs(self) -> int:
        """Programs per multiprocessor."""
        return 1 if self.maxnreg is None else 2


@functools.cache
def persistent_tiles(outer: int, gelu: bool, limits: Limits) -> PersistentTiles:
    """The analytic choice in 16 bits.

    Blackwell gets separate warps for copies and products if Triton supports it: 384 threads of 168 registers use all of
    a multiprocessor's, and one accumulator of 128 columns in tensor memory is filled while the other is read. Triton
    3.8 gives every exponential of such a loop to separate warps, with GELU more than a program may have. So there, and
    on Hopper, where Triton splits tiles of 128 rows among warps but not their copies, two programs with uniform warps
    share a multiprocessor, as with ``gemm_tiles``: three stages of 32 KiB and up to 16 KiB for the epilogue.
    """
    specialized = limits.capability >= 100 and not gelu
    block_n = 128 if outer > 64 else 64
    return PersistentTiles(128, block_n, 64, 8, 4 if specialized else 3, None if specialized else 128, specialized)


def persistent_candidates(outer: int, gelu: bool, limits: Limits) -> list[PersistentTiles]:
    """Alternatives for tuning: twice the columns at once, and one program with a deeper pipeline."""
    specialized = persistent_tiles(outer, gelu, limits).specialized
    return [PersistentTiles(128, *tiles, None, specialized) for tiles in ((128, 64, 8, 4), (256, 64, 8, 3))]


def persistent_refusals(
    dtype: torch.dtype, limits: Limits, rows: int, matrices: Sequence[Tensor], widths: Sequence[int] = ()
) -> list[str]:
    """Every reason why persistent programs cannot compute a product.

    Args:
        dtype: of the operands.
        limits: of the device.
        rows: number of rows.
        matrices: read through tensor descriptors.
        widths: of contiguous matrices that will be read so.
    """
    reasons = []
    if dtype == torch.float32:
        reasons.append("it computes in 16 bits, but these operands are torch.float32")
    if not limits.multiplies_from_shared_memory:
        reasons.append(
            "it needs tensor cores that read shared memory, of compute capability 9.0 to 11,"
            f" but this device has {limits.capability // 10}.{limits.capability % 10}"
        )
    if rows.bit_length() > 30:
        reasons.append(f"it supports fewer than 2^30 rows, but these are {rows}")
    if not described(*matrices):
        reasons.append(
            "it needs rows that begin at multiples of 16 bytes and are less than 2^40 bytes apart, but these are "
            + ", ".join(
                f"{stride} bytes apart from byte {address % 16} on" for address, stride in map(_place, matrices)
            )
        )
    if wrong := [width for width in widths if dtype.itemsize * width % 16 or not width]:
        reasons.append(f"it needs rows of multiples of 16 bytes, but these have {wrong[0]} elements")
    return reasons


def described(*matrices: Tensor) -> bool:
    """Whether tensor descriptors can describe the matrices, once they have unit stride."""
    for matrix in matrices:
        address, stride = _place(matrix)
        if address % 16 or stride % 16 or not 0 < stride < 2**40:
            return False
    return True


def _place(matrix: Tensor) -> tuple[int, int]:
    """Address and row stride in bytes after ``unit_stride``; a copy begins at an address aligned by PyTorch."""
    if matrix.stride(-1) == 1 or matrix.shape[-1] == 1:
        return matrix.data_ptr(), matrix.stride(0) * matrix.element_size()
    return 0, matrix.shape[-1] * matrix.element_size()


@dataclass(frozen=True)
class RowTiles(Configuration):
    """Rows and columns of a program's tile, and its warps."""

    block_rows: int
    block_columns: int
    num_warps: int


@functools.cache
def row_tiles(width: int) -> RowTiles:
    """Whole rows, at least 4096 elements: 32 for each of 128 threads, which is 4 to 8 wide loads in flight."""
    block_columns = power_of_two(width)
    block_rows = max(1, 4096 // block_columns)
    return RowTiles(block_rows, block_columns, max(4, block_columns // 1024))
