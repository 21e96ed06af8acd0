"""Projections on the GPU: the pass after a cuBLAS product, and the launchers of every form."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.primitives.column_sums import column_sums, totals
from crossmae_kernels.primitives.gelu import gelu_backward
from crossmae_kernels.primitives.gemm import Product, gemm
from crossmae_kernels.primitives.norm_folding import fold_norm, fold_norm_gradients
from crossmae_kernels.primitives.normalization import normalize, normalize_backward
from crossmae_kernels.primitives.persistent_gemm import persistent_gemm
from crossmae_kernels.primitives.segmented_sum import segmented_sum
from crossmae_kernels.primitives.tiles import described, persistent_refusals, row_tiles
from crossmae_kernels.projection.config import form_rule
from crossmae_kernels.runtime.autocast import cast
from crossmae_kernels.runtime.device import limits
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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gelu: bool,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Output ``(..., O)``, and what to save: normalised rows, their statistic, GELU's input, the folded weight.

    The last two are None if there is no GELU, or nothing to fold or cast.
    """
    x_hat, rstd = normalize(flat_rows(x), eps, dtype)
    folded, folded_bias = fold_norm(weight, bias, norm_weight, norm_bias, dtype)
    out, hidden = _NORM_LINEAR.run(form_rule(dtype, gelu), x_hat, folded, folded_bias, gelu, save)
    out = out.view(*x.shape[:-1], weight.shape[0])
    return (out, x_hat, rstd, hidden, None if folded is weight else folded) if save else (out, None, None, None, None)


def norm_linear_backward(
    dout: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    folded: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The needed gradients of x, weight, bias and the norm's parameters (stacked)."""
    wants_x, wants_weight, wants_bias, wants_scale, wants_shift = output_mask
    rows = flat_rows(dout)
    dx = dweight = dbias = dnorm = None
    # In float32, unless nothing else reads it.
    summed_in = weight.dtype if norm_bias is None else torch.float32
    if hidden is not None:
        rows, _, sums = gelu_backward(rows, hidden, wants_activated=False)
        (dbias,) = totals((sums, summed_in))
    elif wants_bias or wants_shift or (wants_weight and norm_bias is not None):
        dbias = rows.sum(0, dtype=summed_in)
    if wants_x:
        dx = normalize_backward(rows @ folded, x_hat, rstd, None, x_dtype).view(*dout.shape[:-1], weight.shape[1])
    if wants_weight or wants_scale or wants_shift:
        dfolded = rows.t() @ x_hat if wants_weight or wants_scale else None
        mask = wants_weight, wants_scale, wants_shift
        dweight, dnorm = fold_norm_gradients(dfolded, dbias, weight, norm_weight, norm_bias, mask)
    return dx, dweight, cast(dbias, weight.dtype) if wants_bias else None, dnorm


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``(..., O)`` in the residual's dtype and, to save it, the weight if it was cast to the dtype of ``x``."""
    ids = None if residual_ids is None else residual_ids.reshape(-1).contiguous()
    rule = form_rule(x.dtype, saves_a_pass=True)
    used = cast(weight, x.dtype)
    out = _LINEAR_RESIDUAL.run(rule, flat_rows(x), used, bias, flat_rows(residual), ids)
    return out.view(*x.shape[:-1], weight.shape[0]), None if used is weight else used


def linear_residual_backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    residual_ids: Tensor | None,
    table_rows: int,
    dtype: torch.dtype,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The needed gradients of x, weight, bias and the table; a dense residual's is ``dout`` itself.

    ``dtype`` is that of the parameters; ``weight`` has been cast.
    """
    rows = flat_rows(dout)
    low, sums = column_sums(rows, weight.dtype) if output_mask[2] else (cast(rows, weight.dtype), None)
    (dbias,) = totals((sums, dtype))
    dx = (low @ weight).view_as(x) if output_mask[0] else None
    dweight = cast(low.t() @ flat_rows(x), dtype) if output_mask[1] else None
    dtable = None
    if output_mask[3] and residual_ids is not None:
        dtable = segmented_sum(rows.contiguous(), residual_ids.reshape(-1), table_rows)
    return dx, dweight, dbias, dtable


def _norm_linear(
    multiply: Product, x_hat: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    hidden = x_hat.new_empty(len(x_hat), weight.shape[0]) if gelu and save else None
    return multiply(x_hat, weight, bias, gelu, hidden), hidden


def _library_norm_linear(
    x_hat: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    product = F.linear(x_hat, weight, bias)
    return (F.gelu(product), product) if gelu else (product, None)


def _linear_residual(
    multiply: Product, rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, ids: Tensor | None
) -> Tensor:
    return multiply(rows, weight, bias, residual=residual, residual_ids=ids)


def _library_linear_residual(
    rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, ids: Tensor | None
) -> Tensor:
    return add_residual(F.linear(rows, weight, cast(bias, weight.dtype)), residual, ids)


def _persistent_refusals(rows: Tensor, weight: Tensor, *_: object) -> list[str]:
    return persistent_refusals(weight.dtype, limits(rows.device), len(rows), (rows, weight))


_NORM_LINEAR = Forms(
    "norm_linear",
    {
        "tiled": partial(_norm_linear, gemm),
        "persistent": partial(_norm_linear, persistent_gemm),
        "library": _library_norm_linear,
    },
    key=lambda x_hat, weight, bias, gelu, save: (
        weight.shape, weight.dtype, input_precision(weight.dtype), gelu and "gelu", save and "save",
        described(x_hat, weight) and "described",
    ),
    refusals={"persistent": _persistent_refusals},
)  # fmt: skip
_LINEAR_RESIDUAL = Forms(
    "linear_residual",
    {
        "tiled": partial(_linear_residual, gemm),
        "persistent": partial(_linear_residual, persistent_gemm),
        "library": _library_linear_residual,
    },
    key=lambda rows, weight, bias, residual, ids: (
        weight.shape, weight.dtype, input_precision(weight.dtype), residual.dtype, ids is not None and "ids",
        described(rows, weight) and "described",
    ),
    refusals={"persistent": _persistent_refusals},
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
