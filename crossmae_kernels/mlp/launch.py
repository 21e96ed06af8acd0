"""From tensors to kernels and vendor products, in the form that serves a call best."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.mlp import kernels
from crossmae_kernels.mlp.config import (
    block_width,
    form_rule,
    hidden_tiles,
    single_refusals,
    single_tiles,
)
from crossmae_kernels.primitives.gelu import gelu_backward
from crossmae_kernels.primitives.gemm import gemm
from crossmae_kernels.primitives.normalization import normalize, normalize_backward
from crossmae_kernels.primitives.tiles import GROUP
from crossmae_kernels.runtime.device import shared_memory
from crossmae_kernels.runtime.forms import Form, choose_form
from crossmae_kernels.runtime.launch import blocks, flat_rows, on_device_of, unit_stride, unit_stride_optional
from crossmae_kernels.runtime.precision import input_precision

# Rows, normalised; the statistic of each; what goes into GELU. None where nobody keeps it.
Kept = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, eps: float, keep: bool, keep_hidden: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output like ``x``; where kept, normalised rows, their statistic and the hidden layer, else empty."""
    rows = flat_rows(x)
    hidden_width, width = w1.shape

    def run(form: Form) -> tuple[Tensor, Kept]:
        if form.name == "single":
            return _single(rows, w1, b1, w2, b2, eps, keep, keep_hidden)
        x_hat, rstd = normalize(rows, eps, w1.dtype)
        if form.name == "tiled":
            hidden = x_hat.new_empty(len(rows), hidden_width) if keep_hidden else None
            activated = gemm(x_hat, w1, b1, gelu=True, hidden=hidden)
            return gemm(activated, w2, b2, residual=rows), (x_hat, rstd, hidden)
        hidden = F.linear(x_hat, w1, b1)
        return rows + F.linear(F.gelu(hidden), w2, b2), (x_hat, rstd, hidden if keep_hidden else None)

    refused = single_refusals(width, w1.dtype, shared_memory(x.device))
    key = (width, hidden_width, str(w1.dtype), input_precision(w1.dtype), str(x.dtype), keep, keep_hidden)
    rule = form_rule(w1.dtype, refused)
    form = choose_form("mlp", key, rule, {"single": refused, "tiled": [], "vendor": []}, run, x)
    out, (x_hat, rstd, hidden) = run(Form(form))
    return (
        out.view(x.shape),
        x_hat if keep and x_hat is not None else w1.new_empty(0),
        rstd if keep and rstd is not None else w1.new_empty(0, dtype=torch.float32),
        w1.new_empty(0) if hidden is None else hidden,
    )


def backward(
    dout: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, fc1's weight and bias, fc2's weight and bias where ``wanted``."""
    rows = flat_rows(dout)
    low = rows.to(w1.dtype)
    dx = dw1 = db1 = dw2 = db2 = None
    if any(wanted[:4]):
        dhidden, activated, sums = _hidden_backward(low, w1, b1, w2, x_hat, hidden, wants_activated=wanted[3])
        if activated is not None:
            dw2 = low.t() @ activated
        if wanted[2]:
            db1 = sums.to(w1.dtype)
        if wanted[1]:
            dw1 = dhidden.t() @ x_hat
        if wanted[0]:
            dx = normalize_backward(dhidden @ w1, x_hat, rstd, rows, dout.dtype).view(dout.shape)
    if wanted[4]:
        db2 = rows.sum(0).to(w1.dtype)
    return dx, dw1, db1, dw2, db2


def _single(
    rows: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    eps: float,
    keep: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Kept]:
    """The forward pass in one kernel."""
    count, width = rows.shape
    out = torch.empty(count, width, dtype=rows.dtype, device=rows.device)
    x_hat = w1.new_empty(count, width) if keep else None
    rstd = w1.new_empty(count, dtype=torch.float32) if keep else None
    hidden = w1.new_empty(count, len(w1)) if keep_hidden else None
    if out.numel():
        w1, b1, w2, b2 = unit_stride(w1), unit_stride_optional(b1), unit_stride(w2), unit_stride_optional(b2)
        choice = single_tiles(width)
        with on_device_of(rows):
            kernels.single_forward[(blocks(count, choice.block_m),)](
                rows, w1, b1, w2, b2, out, x_hat, rstd, hidden,
                rows.stride(0), w1.stride(0), w2.stride(0), count, eps,
                WIDTH=width, HIDDEN=len(w1),
                BLOCK_M=choice.block_m, BLOCK_D=block_width(width), BLOCK_H=choice.block_h,
                num_warps=choice.num_warps, num_stages=choice.num_stages,
            )  # fmt: skip
    return out, (x_hat, rstd, hidden)


def _hidden_backward(
    dout: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    hidden: Tensor | None,
    wants_activated: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradient of the hidden layer ``(R, H)``, the layer activated if wanted, and the gradient's sum, float32."""
    hidden_width, width = w1.shape

    def run(form: Form) -> tuple[Tensor, Tensor | None, Tensor]:
        if form.name == "vendor":
            h = F.linear(x_hat, w1, b1) if hidden is None else hidden
            return gelu_backward(dout @ w2, h, wants_activated)
        return _tiled_hidden_backward(dout, w1, b1, w2, x_hat, hidden, wants_activated)

    key = (width, hidden_width, str(w1.dtype), input_precision(w1.dtype), hidden is not None, wants_activated)
    rule = "vendor" if w1.dtype == torch.float32 else "tiled"
    form = choose_form("mlp_backward", key, rule, {"tiled": [], "vendor": []}, run, dout)
    return run(Form(form))


def _tiled_hidden_backward(
    dout: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    hidden: Tensor | None,
    wants_activated: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Both products and GELU's backward pass in one kernel."""
    (rows, width), hidden_width = x_hat.shape, len(w1)
    w1, b1, w2 = unit_stride(w1), unit_stride_optional(b1), unit_stride(w2)
    choice = hidden_tiles(hidden_width, width, w1.element_size(), shared_memory(dout.device))
    dhidden = x_hat.new_empty(rows, hidden_width)
    activated = torch.empty_like(dhidden) if wants_activated else None
    row_tiles = blocks(rows, choice.block_m)
    sums = x_hat.new_empty(row_tiles, hidden_width, dtype=torch.float32)
    if dhidden.numel():
        sizes = {name.upper() if name.startswith("block") else name: size for name, size in asdict(choice).items()}
        with on_device_of(dout):
            kernels.hidden_backward[(row_tiles * blocks(hidden_width, choice.block_n),)](
                dout, w2, x_hat, w1, b1, hidden, dhidden, activated, sums,
                dout.stride(0), w2.stride(0), w1.stride(0), rows,
                WIDTH=width, HIDDEN=hidden_width, GROUP=GROUP, PRECISION=input_precision(w1.dtype), **sizes,
            )  # fmt: skip
    return dhidden, activated, sums.sum(0)
