"""Projections on the GPU: the pass behind a library's product, and from tensors to the form that serves a call best."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.primitives.gelu import gelu_backward
from crossmae_kernels.primitives.gemm import gemm
from crossmae_kernels.primitives.normalization import normalize, normalize_backward
from crossmae_kernels.primitives.segmented_sum import segmented_sum
from crossmae_kernels.primitives.tiles import row_tiles
from crossmae_kernels.projection.config import form_rule
from crossmae_kernels.runtime.dispatch import Forms
from crossmae_kernels.runtime.launch import blocks, flat_rows, input_precision, on_device_of


@triton.jit(do_not_specialize=["num_rows", "table_rows"])
def add_residual_kernel(
    x, residual, ids, out, residual_row, num_rows, table_rows,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out = x + residual``, summed in float32; ``ids`` as for the product with an epilogue. Program: whole rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    offsets = rows[:, None] * WIDTH + columns[None, :]
    tile = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ids is None:
        added = tl.load(residual + rows[:, None] * residual_row + columns[None, :], mask=mask, other=0.0)
    else:
        picked = tl.load(ids + rows, mask=rows < num_rows, other=0).to(tl.int64)
        known = (picked >= 0) & (picked < table_rows)
        places = residual + picked[:, None] * residual_row + columns[None, :]
        added = tl.load(places, mask=mask & known[:, None], other=0.0)
        added = tl.where(known[:, None], added, float("nan"))
    tl.store(out + offsets, (tile + added.to(tl.float32)).to(out.dtype.element_ty), mask=mask)


def norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Output ``(..., O)``; to save, normalised rows, their statistic and with GELU what goes into it, else None."""
    x_hat, rstd = normalize(flat_rows(x), eps, weight.dtype)
    out, hidden = _NORM_LINEAR.run(form_rule(weight.dtype, gelu), x_hat, weight, bias, gelu, save)
    out = out.view(*x.shape[:-1], len(weight))
    return (out, x_hat, rstd, hidden) if save else (out, None, None, None)


def norm_linear_backward(
    dout: Tensor,
    weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias where asked for."""
    rows = flat_rows(dout)
    dbias = None
    if hidden is not None:
        rows, _, dbias = gelu_backward(rows, hidden, wants_activated=False)
    dx = dweight = None
    if output_mask[0]:
        dx = normalize_backward(rows @ weight, x_hat, rstd, None, x_dtype).view(*dout.shape[:-1], weight.shape[1])
    if output_mask[1]:
        dweight = rows.t() @ x_hat
    if not output_mask[2]:
        dbias = None
    elif dbias is None:
        dbias = rows.sum(0)
    return dx, dweight, None if dbias is None else dbias.to(weight.dtype)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    """``(..., O)`` in the residual's dtype."""
    ids = None if residual_ids is None else residual_ids.reshape(-1).contiguous()
    rule = form_rule(weight.dtype, saves_a_pass=True)
    return _LINEAR_RESIDUAL.run(rule, flat_rows(x), weight, bias, flat_rows(residual), ids).view(
        *x.shape[:-1], len(weight)
    )


def linear_residual_backward(
    dout: Tensor, x: Tensor, weight: Tensor, residual_ids: Tensor | None, table_rows: int, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and the table where asked for; a dense residual's is ``dout`` itself."""
    rows = flat_rows(dout)
    low = rows.to(weight.dtype)
    dx = (low @ weight).view(x.shape) if output_mask[0] else None
    dweight = low.t() @ flat_rows(x) if output_mask[1] else None
    dbias = rows.sum(0).to(weight.dtype) if output_mask[2] else None
    dtable = None
    if output_mask[3] and residual_ids is not None:
        dtable = segmented_sum(rows.contiguous(), residual_ids.reshape(-1), table_rows)
    return dx, dweight, dbias, dtable


def _tiled_norm_linear(
    x_hat: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    hidden = x_hat.new_empty(len(x_hat), len(weight)) if gelu and save else None
    return gemm(x_hat, weight, bias, gelu, hidden), hidden


def _library_norm_linear(
    x_hat: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    product = F.linear(x_hat, weight, bias)
    return (F.gelu(product), product) if gelu else (product, None)


def _tiled_linear_residual(
    rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, ids: Tensor | None
) -> Tensor:
    return gemm(rows, weight, bias, residual=residual, residual_ids=ids)


def _library_linear_residual(
    rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, ids: Tensor | None
) -> Tensor:
    return add_residual(F.linear(rows, weight, bias), residual, ids)


_NORM_LINEAR = Forms(
    "norm_linear",
    {"tiled": _tiled_norm_linear, "library": _library_norm_linear},
    key=lambda x_hat, weight, bias, gelu, save: (
        *weight.shape, str(weight.dtype), input_precision(weight.dtype), gelu, save
    ),
    refusals={},
)  # fmt: skip
_LINEAR_RESIDUAL = Forms(
    "linear_residual",
    {"tiled": _tiled_linear_residual, "library": _library_linear_residual},
    key=lambda rows, weight, bias, residual, ids: (
        *weight.shape, str(weight.dtype), input_precision(weight.dtype), str(residual.dtype), ids is not None
    ),
    refusals={},
)  # fmt: skip


def add_residual(x: Tensor, residual: Tensor, ids: Tensor | None) -> Tensor:
    """Contiguous rows ``(R, O)`` plus the residual's, in the residual's dtype."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=residual.dtype, device=x.device)
    if out.numel():
        choice = row_tiles(width)
        with on_device_of(x):
            add_residual_kernel[(blocks(rows, choice.block_rows),)](
                x, residual, ids, out, residual.stride(0), rows, len(residual), WIDTH=width, **choice.constants
            )
    return out
