"""From tensors to kernels and vendor products, in the form that serves a call best."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.primitives.gelu import gelu_backward
from crossmae_kernels.primitives.gemm import gemm
from crossmae_kernels.primitives.normalization import normalize, normalize_backward
from crossmae_kernels.primitives.segmented_sum import segmented_sum
from crossmae_kernels.primitives.tiles import row_tiles
from crossmae_kernels.projection import kernels
from crossmae_kernels.projection.config import form_rule
from crossmae_kernels.runtime.forms import Form, choose_form
from crossmae_kernels.runtime.launch import blocks, flat_rows, on_device_of
from crossmae_kernels.runtime.precision import input_precision

FORMS: dict[str, list[str]] = {"tiled": [], "vendor": []}


def norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output ``(..., O)``; where kept, normalised rows, their statistic and with GELU what goes into it, else empty."""
    x_hat, rstd = normalize(flat_rows(x), eps, weight.dtype)

    def run(form: Form) -> tuple[Tensor, Tensor | None]:
        if form.name == "tiled":
            hidden = x_hat.new_empty(len(x_hat), len(weight)) if gelu and keep else None
            return gemm(x_hat, weight, bias, gelu, hidden), hidden
        product = F.linear(x_hat, weight, bias)
        return (F.gelu(product), product if keep else None) if gelu else (product, None)

    key = (*weight.shape, str(weight.dtype), input_precision(weight.dtype), gelu, keep)
    form = choose_form("norm_linear", key, form_rule(weight.dtype, gelu), FORMS, run, x)
    out, hidden = run(Form(form))
    if not keep:
        x_hat, rstd = x_hat.new_empty(0), rstd.new_empty(0)
    return out.view(*x.shape[:-1], len(weight)), x_hat, rstd, x_hat.new_empty(0) if hidden is None else hidden


def norm_linear_backward(
    dout: Tensor,
    weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias where ``wanted``."""
    rows = flat_rows(dout)
    dbias = None
    if hidden is not None:
        rows, _, dbias = gelu_backward(rows, hidden, wants_activated=False)
    dx = dweight = None
    if wanted[0]:
        dx = normalize_backward(rows @ weight, x_hat, rstd, None, x_dtype).view(*dout.shape[:-1], weight.shape[1])
    if wanted[1]:
        dweight = rows.t() @ x_hat
    if not wanted[2]:
        dbias = None
    elif dbias is None:
        dbias = rows.sum(0)
    return dx, dweight, None if dbias is None else dbias.to(weight.dtype)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    """``(..., O)`` in the residual's dtype."""
    rows, residual_rows = flat_rows(x), flat_rows(residual)
    ids = None if residual_ids is None else residual_ids.reshape(-1).contiguous()

    def run(form: Form) -> Tensor:
        if form.name == "tiled":
            return gemm(rows, weight, bias, residual=residual_rows, residual_ids=ids)
        return add_residual(F.linear(rows, weight, bias), residual_rows, ids)

    key = (*weight.shape, str(weight.dtype), input_precision(weight.dtype), str(residual.dtype), ids is not None)
    form = choose_form("linear_residual", key, form_rule(weight.dtype, True), FORMS, run, x)
    return run(Form(form)).view(*x.shape[:-1], len(weight))


def linear_residual_backward(
    dout: Tensor, x: Tensor, weight: Tensor, residual_ids: Tensor | None, table_rows: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and the table where ``wanted``; a dense residual's is ``dout`` itself."""
    rows = flat_rows(dout)
    low = rows.to(weight.dtype)
    dx = (low @ weight).view(x.shape) if wanted[0] else None
    dweight = low.t() @ flat_rows(x) if wanted[1] else None
    dbias = rows.sum(0).to(weight.dtype) if wanted[2] else None
    dtable = None
    if wanted[3] and residual_ids is not None:
        dtable = segmented_sum(rows.contiguous(), residual_ids.reshape(-1), table_rows)
    return dx, dweight, dbias, dtable


def add_residual(x: Tensor, residual: Tensor, ids: Tensor | None) -> Tensor:
    """Contiguous rows ``(R, O)`` plus the residual's, in the residual's dtype."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=residual.dtype, device=x.device)
    if out.numel():
        choice = row_tiles(width)
        with on_device_of(x):
            kernels.add_residual[(blocks(rows, choice.block_rows),)](
                x, residual, ids, out, residual.stride(0), rows, len(residual),
                WIDTH=width, BLOCK_ROWS=choice.block_rows, BLOCK_COLUMNS=choice.block_columns,
                num_warps=choice.num_warps,
            )  # fmt: skip
    return out
