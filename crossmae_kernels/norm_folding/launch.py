"""From tensors to launches of the fold and its gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.norm_folding import kernels
from crossmae_kernels.norm_folding.config import BACKWARD_COLUMNS, BACKWARD_ROWS, forward_tile
from crossmae_kernels.runtime.launch import alike, blocks, on_device_of, unit_stride


def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weight ``(O, I)`` and bias ``(O,)``, in ``dtype``."""
    folded, folded_bias = fold_norms([weight], bias, norm_weight, norm_bias, dtype)
    return folded[0], None if folded_bias is None else folded_bias[0]


def fold_norms(
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weights ``(n, O, I)`` and biases ``(n, O)`` of n weights ``(O, I)``, in ``dtype``."""
    weights = alike(weights)
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
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor]:
    """Gradient of the weights in their dtype, contiguous, and those of the norms' parameters ``(up to 2, ..., I)``.

    ``dfolded`` is ``(n, O, I)``, or ``(O, I)`` of a single weight, and so are the gradients. The mask is of weights,
    ``norm_weight`` and ``norm_bias``. The norms' are stacked, in float32.
    """
    weights = alike(weights)
    first, (rows, width) = weights[0], weights[0].shape
    dweight = torch.empty(dfolded.shape, dtype=first.dtype, device=first.device) if output_mask[0] else None
    gradients = unit_stride(dfolded).reshape(len(weights), rows, width)
    row_tiles = blocks(rows, BACKWARD_ROWS)
    sums = torch.empty(sum(output_mask[1:]), len(weights), row_tiles, width, dtype=torch.float32, device=first.device)
    slots = iter(sums)
    dscale, dshift = (next(slots) if asked else None for asked in output_mask[1:])
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


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
