"""Column sums, such as gradients of biases, optionally casting the rows in the same pass.

Each tile of rows is summed by whichever kernel reads it anyway, and one launch adds up the tiles of one or two tensors.
There are no atomics, so the order of a sum never changes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.runtime.launch import blocks, on_device_of

# 32 elements for each of 256 threads, as wide loads, and sums that are a 128th of them.
BLOCK_M, BLOCK_N, NUM_WARPS = 128, 64, 8

# Lines of 128 bytes, 16 of them in flight for each of 4 warps.
BLOCK_TILES, BLOCK_COLUMNS = 64, 32


@triton.jit(do_not_specialize=["num_rows"])
def column_sums_kernel(
    rows, cast, sums, row_stride, num_rows, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Program (row tile, column tile): its part of ``cast``, which may be None, and its columns' sums in float32."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    places = tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (places < num_rows - first_row)[:, None] & (columns < WIDTH)[None, :]
    offsets = first_row * row_stride + places[:, None] * row_stride + columns[None, :]
    tile = tl.load(rows + offsets, mask=mask, other=0.0)
    if cast is not None:
        offsets = first_row * WIDTH + places[:, None] * WIDTH + columns[None, :]
        tl.store(cast + offsets, tile.to(cast.dtype.element_ty), mask=mask)
    total = tl.sum(tile.to(tl.float32), axis=0)
    tl.store(sums + tl.program_id(0).to(tl.int64) * WIDTH + columns, total, mask=columns < WIDTH)


@triton.jit
def add_up(sums, out, tiles, width, block, BLOCK_TILES: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """A block of columns of ``out``: the sum over all tiles."""
    columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = (columns < width)[None, :]
    total = tl.zeros((BLOCK_TILES, BLOCK_COLUMNS), dtype=tl.float32)
    for first in range(0, tiles, BLOCK_TILES):
        places = first + tl.arange(0, BLOCK_TILES)
        offsets = places.to(tl.int64)[:, None] * width + columns[None, :]
        total += tl.load(sums + offsets, mask=(places < tiles)[:, None] & inside, other=0.0)
    tl.store(out + columns, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=columns < width)


@triton.jit(do_not_specialize=["tiles", "other_tiles"])
def totals_kernel(
    sums, out, tiles, width, other_sums, other_out, other_tiles, other_width,
    BLOCK_TILES: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program: a block of columns; those of the second sums, which may be None, follow those of the first."""
    block = tl.program_id(0)
    if other_sums is None:
        add_up(sums, out, tiles, width, block, BLOCK_TILES, BLOCK_COLUMNS)
    else:
        first_ones = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        if block < first_ones:
            add_up(sums, out, tiles, width, block, BLOCK_TILES, BLOCK_COLUMNS)
        else:
            add_up(other_sums, other_out, other_tiles, other_width, block - first_ones, BLOCK_TILES, BLOCK_COLUMNS)


def column_sums(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``(R, D)`` in ``dtype``, without a copy if they have it, and sums of tiles ``(T, D)`` for ``totals``.

    Rows have unit stride (``flat_rows``). The sums are of the rows before rounding.
    """
    count, width = rows.shape
    cast = None if rows.dtype == dtype else torch.empty(count, width, dtype=dtype, device=rows.device)
    sums = torch.empty(blocks(count, BLOCK_M), width, dtype=torch.float32, device=rows.device)
    if rows.numel():
        with on_device_of(rows):
            column_sums_kernel[(len(sums), blocks(width, BLOCK_N))](
                rows, cast, sums, rows.stride(0), count,
                WIDTH=width, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=NUM_WARPS,
            )  # fmt: skip
    return rows if cast is None else cast, sums


def totals(*parts: tuple[Tensor | None, torch.dtype]) -> list[Tensor | None]:
    """Add up at most two tensors of tile sums ``(T, D)``, contiguous float32, each to ``(D,)`` in its given dtype.

    None stays None.
    """
    found = [None if sums is None else sums.new_empty(sums.shape[1], dtype=dtype) for sums, dtype in parts]
    given = [(sums, out) for (sums, _), out in zip(parts, found, strict=True) if sums is not None and out is not None]
    arguments = [argument for sums, out in given for argument in (sums, out, *sums.shape)]
    programs = sum(blocks(len(out), BLOCK_COLUMNS) for _, out in given)
    if programs:
        with on_device_of(given[0][0]):
            totals_kernel[(programs,)](
                *arguments, *(None, None, 0, 0) * (2 - len(given)), BLOCK_TILES=BLOCK_TILES, BLOCK_COLUMNS=BLOCK_COLUMNS
            )
    return found
