"""The projections' gradients by cuBLAS products, block by block and without copies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def backward(
    x: Tensor, weight: Tensor, gradients: Sequence[Tensor], output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The needed gradients of x ``(n, B, K, I)``, weight ``(n, O, I)`` and bias ``(n, O)``."""
    dx = x.new_empty(x.shape) if output_mask[0] else None
    dweight = weight.new_empty(weight.shape) if output_mask[1] else None
    dbias = weight.new_empty(weight.shape[:2]) if output_mask[2] else None
    for block, gradient in enumerate(gradients):
        rows = gradient.flatten(0, 1)
        if dx is not None:
            torch.mm(rows, weight[block], out=dx[block].flatten(0, 1))
        if dweight is not None:
            torch.mm(rows.mT, x[block].flatten(0, 1), out=dweight[block])
        if dbias is not None:
            torch.sum(rows, 0, out=dbias[block])
    return dx, dweight, dbias
