"""From tensors to launches of the passes over rows."""

import torch
from torch import Tensor

from crossmae_kernels.common.launch import blocks, on_device_of
from crossmae_kernels.common.normalization import kernels
from crossmae_kernels.common.normalization.config import tiles


def normalize(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``(R, D)``, unit stride -> normalised rows ``(R, D)`` in ``dtype``, and ``1 / sqrt(variance + eps)``.

    The statistic ``(R,)`` is float32.
    """
    rows, width = x.shape
    x_hat = torch.empty(rows, width, dtype=dtype, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    if x_hat.numel():
        choice = tiles(width)
        with on_device_of(x):
            kernels.normalize[(blocks(rows, choice.block_rows),)](
                x, x_hat, rstd, x.stride(0), rows, eps,
                WIDTH=width, BLOCK_ROWS=choice.block_rows, BLOCK_COLUMNS=choice.block_columns,
                num_warps=choice.num_warps,
            )  # fmt: skip
    return x_hat, rstd


def normalize_backward(
    dx_hat: Tensor, x_hat: Tensor, rstd: Tensor, dresidual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Gradient ``(R, D)`` in ``dtype`` of the rows that became ``x_hat``, plus ``dresidual`` if there is one."""
    rows, width = x_hat.shape
    dx = torch.empty(rows, width, dtype=dtype, device=x_hat.device)
    if dx.numel():
        choice = tiles(width)
        with on_device_of(x_hat):
            kernels.normalize_backward[(blocks(rows, choice.block_rows),)](
                dx_hat, x_hat, rstd, dresidual, dx,
                dx_hat.stride(0), 0 if dresidual is None else dresidual.stride(0), rows,
                WIDTH=width, BLOCK_ROWS=choice.block_rows, BLOCK_COLUMNS=choice.block_columns,
                num_warps=choice.num_warps,
            )  # fmt: skip
    return dx
