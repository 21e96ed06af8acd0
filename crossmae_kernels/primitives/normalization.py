"""LayerNorm without its affine, which is folded away, and its gradient.

Both passes read and write each byte once, with rows on chip.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.primitives.tiles import row_tiles
from crossmae_kernels.runtime.launch import blocks, on_device_of


@triton.jit
def normalized_rows(tile, inside, eps, WIDTH: tl.constexpr):
    """Rows of a float32 tile with mean 0 and variance 1, and 1 / sqrt(variance + eps); ``inside`` masks columns.

    Makes several passes over registers: the variance of centred values has no cancellation, and the remainder of the
    mean left by rounding is subtracted too. Elements outside the tensor must be 0 in the tile, and are 0 in the result.
    """
    centred = tl.where(inside, tile - (tl.sum(tile, axis=1) / WIDTH)[:, None], 0.0)
    centred = tl.where(inside, centred - (tl.sum(centred, axis=1) / WIDTH)[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    return centred * rstd[:, None], rstd


@triton.jit(do_not_specialize=["num_rows"])
def normalize_kernel(
    x, x_hat, rstd, x_row, num_rows, eps, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Program: a tile of whole rows. Writes ``x_hat`` in its dtype and ``rstd`` in float32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    tile = tl.load(x + rows[:, None] * x_row + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    normalized, row_rstd = normalized_rows(tile, (columns < WIDTH)[None, :], eps, WIDTH)
    tl.store(x_hat + rows[:, None] * WIDTH + columns[None, :], normalized.to(x_hat.dtype.element_ty), mask=mask)
    tl.store(rstd + rows, row_rstd, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def normalize_backward_kernel(
    dx_hat, x_hat, rstd, dresidual, dx, dx_hat_row, dresidual_row, num_rows,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``dx = rstd (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) + dresidual``; ``dresidual`` may be None."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    gradient = tl.load(dx_hat + rows[:, None] * dx_hat_row + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    normalized = tl.load(x_hat + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    row_rstd = tl.load(rstd + rows, mask=rows < num_rows, other=0.0)
    mean = tl.sum(gradient, axis=1) / WIDTH
    along = tl.sum(gradient * normalized, axis=1) / WIDTH
    result = row_rstd[:, None] * (gradient - mean[:, None] - normalized * along[:, None])
    if dresidual is not None:
        passed_on = tl.load(dresidual + rows[:, None] * dresidual_row + columns[None, :], mask=mask, other=0.0)
        result += passed_on.to(tl.float32)
    tl.store(dx + rows[:, None] * WIDTH + columns[None, :], result.to(dx.dtype.element_ty), mask=mask)


def normalize(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows ``(R, D)``, unit stride -> normalised rows ``(R, D)`` in ``dtype``, and ``1 / sqrt(variance + eps)``.

    The statistic ``(R,)`` is float32.
    """
    rows, width = x.shape
    x_hat = torch.empty(rows, width, dtype=dtype, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    if x_hat.numel():
        choice = row_tiles(width)
        with on_device_of(x):
            normalize_kernel[(blocks(rows, choice.block_rows),)](
                x, x_hat, rstd, x.stride(0), rows, eps,
                WIDTH=width, **choice.constants,
            )  # fmt: skip
    return x_hat, rstd


def normalize_backward(
    dx_hat: Tensor, x_hat: Tensor, rstd: Tensor, dresidual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Gradient ``(R, D)`` in ``dtype`` of the rows that became ``x_hat``, plus ``dresidual`` if there is one."""
    rows, width = x_hat.shape
    dx = torch.empty(rows, width, dtype=dtype, device=x_hat.device)
    if dx.numel():
        choice = row_tiles(width)
        with on_device_of(x_hat):
            normalize_backward_kernel[(blocks(rows, choice.block_rows),)](
                dx_hat, x_hat, rstd, dresidual, dx,
                dx_hat.stride(0), 0 if dresidual is None else dresidual.stride(0), rows,
                WIDTH=width, **choice.constants,
            )  # fmt: skip
    return dx
