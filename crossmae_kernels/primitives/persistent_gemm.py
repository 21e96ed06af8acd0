"""Matrix product with the epilogue of ``gemm``, by persistent programs that read through tensor descriptors.

A program processes one tile after the other, so the next one's operands arrive while the epilogue runs; with warp
specialization, the next one is even multiplied meanwhile. Operands are copied by the tensor memory accelerator: one
thread gives the corner of a box, and elements outside the matrix are zeros, so no warp computes addresses or masks.
Descriptors are created on the host and passed with the launch. Creating them on the device needs memory that can only
be allocated for all kernels of the user's process (``triton.set_allocator``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from crossmae_kernels.primitives.gemm import place_of_tile, store_tile
from crossmae_kernels.primitives.tiles import GROUP, PersistentTiles, persistent_candidates, persistent_tiles
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.runtime.launch import blocks, on_device_of, unit_stride, unit_stride_optional
from crossmae_kernels.runtime.tuning import run_tuned, tunes_tiles


@triton.jit(do_not_specialize=["num_rows", "table_rows"])
def persistent_gemm_kernel(
    a, weight, bias, residual, ids, out, hidden, residual_row, num_rows, table_rows,
    OUTER: tl.constexpr, INNER: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPECIALIZED: tl.constexpr,
):  # fmt: skip
    """``out = activation(a weight^T + bias) + residual``, None allowed as in ``store_tile``.

    ``a`` and ``weight`` are descriptors of boxes (BLOCK_M, BLOCK_K) and (BLOCK_N, BLOCK_K). Program: tiles
    strided by the number of programs.
    """
    tiles = (num_rows + BLOCK_M - 1) // BLOCK_M * ((OUTER + BLOCK_N - 1) // BLOCK_N)
    # Both loops are flattened, so copies prefetch across tiles. Triton 3.6 only specialises warps of such loops.
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True, warp_specialize=SPECIALIZED):
        row_tile, column_tile = place_of_tile(index, num_rows, OUTER, BLOCK_M, BLOCK_N, GROUP)
        tile = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for first in range(0, INNER, BLOCK_K):
            a_part = a.load([row_tile * BLOCK_M, first])
            weight_part = weight.load([column_tile * BLOCK_N, first])
            tile = tl.dot(a_part, weight_part.T, tile)
        store_tile(
            tile, bias, residual, ids, out, hidden, residual_row, row_tile, column_tile, num_rows, table_rows,
            OUTER, GELU, BLOCK_M, BLOCK_N,
        )  # fmt: skip


def persistent_gemm(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    hidden: Tensor | None = None,
    residual: Tensor | None = None,
    residual_ids: Tensor | None = None,
) -> Tensor:
    """``gemm`` for matrices that ``persistent_refusals`` accepts: same arguments, same result."""
    rows, inner = a.shape
    outer = len(weight)
    weight, bias = unit_stride(weight), unit_stride_optional(bias)
    out = torch.empty(rows, outer, dtype=a.dtype if residual is None else residual.dtype, device=a.device)
    if not out.numel():
        return out
    device = limits(a.device)

    def run(choice: PersistentTiles) -> None:
        tiles = blocks(rows, choice.block_m) * blocks(outer, choice.block_n)
        persistent_gemm_kernel[(min(tiles, choice.programs * device.multiprocessors),)](
            _described(a, choice.block_m, choice.block_k), _described(weight, choice.block_n, choice.block_k),
            bias, residual, residual_ids, out, hidden, 0 if residual is None else residual.stride(0),
            rows, 0 if residual is None else len(residual),
            OUTER=outer, INNER=inner, GELU=gelu, GROUP=GROUP, **choice.constants,
        )  # fmt: skip

    choice = persistent_tiles(outer, gelu, device)
    with on_device_of(a):
        if tunes_tiles(a):
            epilogue = (
                gelu and "gelu", hidden is not None and "hidden", residual is not None and "residual",
                residual_ids is not None and "ids", out.dtype,
            )  # fmt: skip
            key = (weight.shape, a.dtype, *epilogue)
            candidates = persistent_candidates(outer, gelu, device)
            run_tuned("persistent_gemm", key, rows, choice, lambda: candidates, run, a.device)
        else:
            run(choice)
    return out


def _described(matrix: Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    """A descriptor of rows with unit stride, whatever stride PyTorch reports for a single column."""
    return TensorDescriptor(matrix, [*matrix.shape], [matrix.stride(0), 1], [block_rows, block_columns])
