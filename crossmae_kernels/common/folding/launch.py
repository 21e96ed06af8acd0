"""From tensors to launches of the fold and its gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.common.folding import kernels
from crossmae_kernels.common.launch import blocks, on_device_of, unit_stride

# Forward: 32 elements for each of 128 threads, in rows of which a program has the whole. More would share the norm's
# parameters, read from caches, among more rows, and leave a matrix of 512 x 512 with less than 64 programs.
FORWARD_TILE, WIDEST_BLOCK = 4096, 1024

# Backward: lines of 256 bytes in float32, and sums that are a fiftieth of what else is moved.
BACKWARD_ROWS, BACKWARD_COLUMNS = 64, 64


def forward_tile(width: int) -> tuple[int, int]:
    """Rows and columns that a program takes at a time."""
    columns = min(1 << (width - 1).bit_length(), WIDEST_BLOCK)
    return FORWARD_TILE // columns, columns


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Folded weight and bias, contiguous, in ``dtype``."""
    folded = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    has_bias = bias is not None or norm_bias is not None
    folded_bias = torch.empty(weight.shape[:-1], dtype=dtype, device=weight.device) if has_bias else None
    matrices = _matrices(weight)
    count, rows, width = matrices.shape
    block_rows, block_columns = forward_tile(width)
    programs = count * blocks(rows, block_rows)
    if programs:
        with on_device_of(weight):
            kernels.fold_forward[(programs,)](
                matrices, _dense(bias), _dense(norm_weight), _dense(norm_bias), folded, folded_bias,
                matrices.stride(0), matrices.stride(1), rows,
                WIDTH=width, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
            )  # fmt: skip
    return folded, folded_bias


def fold_norm_backward(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor]:
    """Gradient of the weight in its dtype, contiguous, and those of the norm's parameters ``(up to 2, ..., I)``.

    ``wanted``: those of weight, ``norm_weight`` and ``norm_bias``. The norm's are stacked, in float32.
    """
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if wanted[0] else None
    gradients, matrices = _matrices(dfolded), _matrices(weight)
    count, rows, width = matrices.shape
    row_tiles = blocks(rows, BACKWARD_ROWS)
    sums = torch.empty(sum(wanted[1:]), count, row_tiles, width, dtype=torch.float32, device=weight.device)
    slots = iter(sums)
    dscale, dshift = (next(slots) if want else None for want in wanted[1:])
    grid = (count * row_tiles, blocks(width, BACKWARD_COLUMNS))
    if all(grid):
        with on_device_of(weight):
            kernels.fold_backward[grid](
                gradients, _dense(dfolded_bias), matrices, _dense(norm_weight), _dense(norm_bias),
                dweight, dscale, dshift,
                gradients.stride(0), gradients.stride(1), matrices.stride(0), matrices.stride(1), rows,
                WIDTH=width, BLOCK_ROWS=BACKWARD_ROWS, BLOCK_COLUMNS=BACKWARD_COLUMNS,
            )  # fmt: skip
    return dweight, sums.sum(2).view(len(sums), *weight.shape[:-2], width)


def _matrices(weight: Tensor) -> Tensor:
    """``(..., O, I)`` as ``(n, O, I)`` with unit stride: a view if it can be, else a copy."""
    return unit_stride(weight.reshape(math.prod(weight.shape[:-2]), *weight.shape[-2:]))


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
