"""Matrix product with bias, GELU and residual in its epilogue.

Tiles of pointers, which Triton turns into asynchronous copies through shared memory on every architecture from 8.0 on.
Widths are compile-time constants: a model has few of them, and if a tile divides them the loop needs no mask. The
number of rows is not, so one compiled kernel works for every batch.
"""

# mypy: disable-error-code="assignment"

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.primitives.gelu import gelu
from crossmae_kernels.primitives.tiles import GROUP, GemmTiles, gemm_candidates, gemm_tiles
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.runtime.launch import blocks, input_precision, on_device_of, unit_stride, unit_stride_optional
from crossmae_kernels.runtime.tuning import run_tuned, tunes_tiles

# ``gemm``, or a function with the same arguments.
Product = Callable[..., Tensor]


@triton.jit
def place_of_tile(
    index, num_rows, OUTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Row tile and column tile of the tile at ``index``: groups of row tiles go through the column tiles together."""
    column_tiles = (OUTER + BLOCK_N - 1) // BLOCK_N
    first = index // (GROUP * column_tiles) * GROUP
    size = tl.minimum((num_rows + BLOCK_M - 1) // BLOCK_M - first, GROUP)
    within = index % (GROUP * column_tiles)
    return first + within % size, within // size


@triton.jit
def product(
    a, a_row, inside, b, b_row, columns,
    OUTER: tl.constexpr, INNER: tl.constexpr, TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of ``a``, from its first one on, times columns of ``b``: a float32 tile (BLOCK_M, BLOCK_N).

    ``b`` is ``(OUTER, INNER)`` if TRANSPOSED, as a linear layer keeps its weight, else ``(INNER, OUTER)``.
    """
    inner = tl.arange(0, BLOCK_K)
    a_tile = a + tl.arange(0, BLOCK_M)[:, None] * a_row + inner[None, :]
    if TRANSPOSED:
        b_tile = b + columns[None, :] * b_row + inner[:, None]
        b_step = BLOCK_K
    else:
        b_tile = b + inner[:, None] * b_row + columns[None, :]
        b_step = BLOCK_K * b_row
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, INNER, BLOCK_K):
        a_mask = inside[:, None]
        b_mask = (columns < OUTER)[None, :]
        if INNER % BLOCK_K != 0:
            a_mask = a_mask & (first + inner < INNER)[None, :]
            b_mask = b_mask & (first + inner < INNER)[:, None]
        if OUTER % BLOCK_N == 0 and INNER % BLOCK_K == 0:
            b_part = tl.load(b_tile)
        else:
            b_part = tl.load(b_tile, mask=b_mask, other=0.0)
        a_part = tl.load(a_tile, mask=a_mask, other=0.0)
        total = tl.dot(a_part, b_part, total, input_precision=PRECISION)
        a_tile += BLOCK_K
        b_tile += b_step
    return total


@triton.jit
def halved(tiles, COUNT: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr):
    """The left and right halves of ``COUNT`` tiles (BLOCK_M, WIDTH)."""
    halves = ()
    for index in tl.static_range(COUNT):
        pairs = tl.permute(tl.reshape(tiles[index], (BLOCK_M, 2, WIDTH // 2)), (0, 2, 1))
        left, right = tl.split(pairs)
        halves = halves + (left, right)
    return halves


# Columns that an epilogue processes at a time. With 32 instead of all 128, the product with a float32 residual takes
# 114 registers instead of 167 on Hopper, 90 instead of 214 on Blackwell, and 789 instructions instead of 1057: two
# programs fit on a multiprocessor, and one multiplies while the other is in its epilogue.
PIECE = tl.constexpr(32)


@triton.jit
def pieces(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile (BLOCK_M, BLOCK_N), up to 256 columns, as tiles of PIECE columns from left to right."""
    parts = (tile,)
    if BLOCK_N >= 64:
        parts = halved(parts, 1, BLOCK_M, BLOCK_N)
    if BLOCK_N >= 128:
        parts = halved(parts, 2, BLOCK_M, BLOCK_N // 2)
    if BLOCK_N >= 256:
        parts = halved(parts, 4, BLOCK_M, BLOCK_N // 4)
    return parts


@triton.jit
def store_tile(
    tile, bias, residual, ids, out, hidden, residual_row, row_tile, column_tile, num_rows, table_rows,
    OUTER: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The epilogue: ``activation(tile + bias) + residual`` into ``out``, piece by piece.

    ``bias``, ``residual``, ``ids`` and ``hidden`` may be None. With ``ids``, the residual's rows are gathered from
    a table; a row whose id is outside the table is not read, and its result is NaN. ``hidden`` receives the input of
    the activation.
    """
    first_row = row_tile.to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    inside = rows < num_rows - first_row
    if residual is not None and ids is None:
        residual += first_row * residual_row
    parts = pieces(tile, BLOCK_M, BLOCK_N)
    for index in tl.static_range(BLOCK_N // PIECE):
        part = parts[index]
        columns = column_tile * BLOCK_N + index * PIECE + tl.arange(0, PIECE)
        mask = inside[:, None] & (columns < OUTER)[None, :]
        offsets = first_row * OUTER + rows[:, None] * OUTER + columns[None, :]
        if bias is not None:
            part += tl.load(bias + columns, mask=columns < OUTER, other=0.0).to(tl.float32)[None, :]
        if GELU:
            if hidden is not None:
                tl.store(hidden + offsets, part.to(hidden.dtype.element_ty), mask=mask)
            part = gelu(part, out.dtype.element_ty)
        if residual is not None:
            if ids is None:
                added = tl.load(residual + rows[:, None] * residual_row + columns[None, :], mask=mask, other=0.0)
            else:
                picked = tl.load(ids + first_row + rows, mask=inside, other=0).to(tl.int64)
                known = (picked >= 0) & (picked < table_rows)
                places = residual + picked[:, None] * residual_row + columns[None, :]
                added = tl.load(places, mask=mask & known[:, None], other=0.0)
                added = tl.where(known[:, None], added, float("nan"))
            part += added.to(tl.float32)
        tl.store(out + offsets, part.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "table_rows"])
def gemm_kernel(
    a, weight, bias, residual, ids, out, hidden, a_row, weight_row, residual_row, num_rows, table_rows,
    OUTER: tl.constexpr, INNER: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``out = activation(a weight^T + bias) + residual``, None allowed as in ``store_tile``; program: one tile."""
    row_tile, column_tile = place_of_tile(tl.program_id(0), num_rows, OUTER, BLOCK_M, BLOCK_N, GROUP)
    first_row = row_tile.to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows - first_row
    a += first_row * a_row
    tile = product(
        a, a_row, inside, weight, weight_row, columns, OUTER, INNER, True, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
    )  # fmt: skip
    store_tile(
        tile, bias, residual, ids, out, hidden, residual_row, row_tile, column_tile, num_rows, table_rows,
        OUTER, GELU, BLOCK_M, BLOCK_N,
    )  # fmt: skip


def gemm(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    hidden: Tensor | None = None,
    residual: Tensor | None = None,
    residual_ids: Tensor | None = None,
) -> Tensor:
    """``activation(a weight^T + bias) + residual``, rows ``(R, I)`` -> ``(R, O)`` in the residual's dtype, or a's.

    Args:
        a: ``(R, I)``, unit stride.
        weight: ``(O, I)`` in the dtype of ``a``.
        bias: ``(O,)`` or None.
        gelu: whether the activation is GELU; there is none otherwise.
        hidden: ``(R, O)``, contiguous, receives the input of the activation; or None.
        residual: ``(R, O)``, or a table ``(N, O)``, unit stride; or None.
        residual_ids: int64 or int32 ``(R,)``, contiguous; only with a table.
    """
    rows, inner = a.shape
    outer = len(weight)
    precision = input_precision(a.dtype)
    weight, bias = unit_stride(weight), unit_stride_optional(bias)
    out = torch.empty(rows, outer, dtype=a.dtype if residual is None else residual.dtype, device=a.device)
    if not out.numel():
        return out

    def run(choice: GemmTiles) -> None:
        gemm_kernel[(blocks(rows, choice.block_m) * blocks(outer, choice.block_n),)](
            a, weight, bias, residual, residual_ids, out, hidden,
            a.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0),
            rows, 0 if residual is None else len(residual),
            OUTER=outer, INNER=inner, GELU=gelu, GROUP=GROUP, PRECISION=precision, **choice.constants,
        )  # fmt: skip

    problem = (outer, inner, a.element_size(), limits(a.device))
    choice = gemm_tiles(*problem)
    with on_device_of(a):
        if tunes_tiles(a):
            epilogue = (
                gelu and "gelu", hidden is not None and "hidden", residual is not None and "residual",
                residual_ids is not None and "ids", out.dtype,
            )  # fmt: skip
            key = (weight.shape, a.dtype, precision, *epilogue)
            run_tuned("gemm", key, rows, choice, lambda: gemm_candidates(*problem), run, a.device)
        else:
            run(choice)
    return out
