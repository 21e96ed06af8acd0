"""From tensors to launches of the fold and its gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.norm_folding import kernels
from crossmae_kernels.runtime.launch import blocks, on_device_of, unit_stride

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
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weights ``(n, O, I)`` and biases ``(n, O)`` of n weights ``(O, I)``, in ``dtype``."""
    weights = _alike(weights)
    first, (rows, width) = weights[0], weights[0].shape
    folded = torch.empty(len(weights), rows, width, dtype=dtype, device=first.device)
    has_bias = bias is not None or norm_bias is not None
    folded_bias = torch.empty(len(weights), rows, dtype=dtype, device=first.device) if has_bias else None
    block_rows, block_columns = forward_tile(width)
    programs = len(weights) * blocks(rows, block_rows)
    if programs:
        with on_device_of(first):
            kernels.fold_forward[(programs,)](
                weights, _dense(bias), _dense(norm_weight), _dense(norm_bias), folded, folded_bias,
                first.stride(0), rows,
                MATRICES=len(weights), WIDTH=width, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
            )  # fmt: skip
    return folded, folded_bias


def fold_norm_backward(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weights: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor]:
    """Gradient of the weights in their dtype, contiguous, and those of the norms' parameters ``(up to 2, ..., I)``.

    ``dfolded`` is ``(n, O, I)``, or ``(O, I)`` of a single weight, and so are the gradients. ``wanted``: those of
    weights, ``norm_weight`` and ``norm_bias``. The norms' are stacked, in float32.
    """
    weights = _alike(weights)
    first, (rows, width) = weights[0], weights[0].shape
    dweight = torch.empty(dfolded.shape, dtype=first.dtype, device=first.device) if wanted[0] else None
    gradients = unit_stride(dfolded).reshape(len(weights), rows, width)
    row_tiles = blocks(rows, BACKWARD_ROWS)
    sums = torch.empty(sum(wanted[1:]), len(weights), row_tiles, width, dtype=torch.float32, device=first.device)
    slots = iter(sums)
    dscale, dshift = (next(slots) if want else None for want in wanted[1:])
    grid = (len(weights) * row_tiles, blocks(width, BACKWARD_COLUMNS))
    if all(grid):
        with on_device_of(first):
            kernels.fold_backward[grid](
                gradients, _dense(dfolded_bias), weights, _dense(norm_weight), _dense(norm_bias),
                dweight, dscale, dshift,
                gradients.stride(0), gradients.stride(1), first.stride(0), rows,
                MATRICES=len(weights), WIDTH=width, BLOCK_ROWS=BACKWARD_ROWS, BLOCK_COLUMNS=BACKWARD_COLUMNS,
            )  # fmt: skip
    return dweight, sums.sum(2).view(len(sums), *dfolded.shape[:-2], width)


def _alike(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The weights themselves where all lie in memory alike, with unit stride, as parameters do; else copies."""
    if len({weight.stride() for weight in weights}) > 1:
        return tuple(weight.contiguous() for weight in weights)
    return tuple(unit_stride(weight) for weight in weights)


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
