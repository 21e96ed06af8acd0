"""The MLP on the GPU: device code beyond the primitives, then the launchers.

``single_forward`` keeps the hidden layer on chip: a program holds its normalised rows and loops over the hidden units
in chunks, each multiplied into the output as soon as it is activated. ``hidden_backward`` recomputes or reads the
hidden layer beside its upstream gradient, so GELU's backward pass is an epilogue of both.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.mlp.config import backward_form, form_rule, hidden_tiles, single_refusals, single_tiles
from crossmae_kernels.primitives.column_sums import column_sums, totals
from crossmae_kernels.primitives.gelu import gelu, gelu_backward, store_hidden_gradients
from crossmae_kernels.primitives.gemm import PIECE, Product, gemm, pieces, place_of_tile, product
from crossmae_kernels.primitives.norm_folding import fold_norm, fold_norm_gradients
from crossmae_kernels.primitives.normalization import normalize, normalize_backward, normalized_rows
from crossmae_kernels.primitives.persistent_gemm import persistent_gemm
from crossmae_kernels.primitives.tiles import GROUP, described, persistent_refusals
from crossmae_kernels.runtime.autocast import cast
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.runtime.dispatch import Forms
from crossmae_kernels.runtime.launch import (
    blocks,
    dot_extent,
    flat_rows,
    input_precision,
    on_device_of,
    unit_stride,
    unit_stride_optional,
)


@triton.jit(do_not_specialize=["num_rows"])
def single_forward_kernel(
    x, w1, b1, w2, b2, out, x_hat, rstd, hidden, x_row, w1_row, w2_row, num_rows, eps,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """``out = x + gelu(x_hat w1^T + b1) w2^T + b2``; program: a tile of whole rows.

    ``b1`` and ``b2`` may be None, as may ``x_hat`` with ``rstd``, and ``hidden``, if the backward pass does not need
    them.
    """
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = rows < num_rows - first_row
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    x_tile = x + first_row * x_row + rows[:, None] * x_row + columns[None, :]
    offsets = first_row * WIDTH + rows[:, None] * WIDTH + columns[None, :]
    tile = tl.load(x_tile, mask=mask, other=0.0).to(tl.float32)
    tile, row_rstd = normalized_rows(tile, (columns < WIDTH)[None, :], eps, WIDTH)
    normalized = tile.to(w1.dtype.element_ty)
    if x_hat is not None:
        tl.store(x_hat + offsets, normalized, mask=mask)
        tl.store(rstd + first_row + rows, row_rstd, mask=inside)
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for first in range(0, HIDDEN, BLOCK_H):
        units = first + tl.arange(0, BLOCK_H)
        weights = (units < HIDDEN)[:, None] & (columns < WIDTH)[None, :]
        w1_tile = tl.load(w1 + units[:, None] * w1_row + columns[None, :], mask=weights, other=0.0)
        h = tl.dot(normalized, tl.trans(w1_tile), input_precision="ieee")
        if b1 is not None:
            h += tl.load(b1 + units, mask=units < HIDDEN, other=0.0).to(tl.float32)[None, :]
        if hidden is not None:
            places = hidden + first_row * HIDDEN + rows[:, None] * HIDDEN + units[None, :]
            tl.store(places, h.to(hidden.dtype.element_ty), mask=inside[:, None] & (units < HIDDEN)[None, :])
        activated = gelu(h, w2.dtype.element_ty).to(w2.dtype.element_ty)
        w2_tile = tl.load(w2 + columns[:, None] * w2_row + units[None, :], mask=tl.trans(weights), other=0.0)
        total = tl.dot(activated, tl.trans(w2_tile), total, input_precision="ieee")
    if b2 is not None:
        total += tl.load(b2 + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    total += tl.load(x_tile, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def hidden_backward_kernel(
    dout, w2, x_hat, w1, b1, hidden, dhidden, activated, sums, dout_row, w2_row, w1_row, num_rows,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``dhidden = (dout w2) gelu'(h)``, ``activated = gelu(h)``, and sums of dhidden's columns over each row tile.

    ``h`` is ``hidden`` if it was saved, else ``x_hat w1^T + b1`` rounded alike. Program: one tile of both.
    """
    row_tile, column_tile = place_of_tile(tl.program_id(0), num_rows, HIDDEN, BLOCK_M, BLOCK_N, GROUP)
    first_row = row_tile.to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows - first_row
    if hidden is None:
        h = product(
            x_hat + first_row * WIDTH, WIDTH, inside, w1, w1_row, columns,
            HIDDEN, WIDTH, True, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        if b1 is not None:
            h += tl.load(b1 + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)[None, :]
        h = h.to(w1.dtype.element_ty)
    gradient = product(
        dout + first_row * dout_row, dout_row, inside, w2, w2_row, columns,
        HIDDEN, WIDTH, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    gradients = pieces(gradient, BLOCK_M, BLOCK_N)
    if hidden is None:
        hs = pieces(h, BLOCK_M, BLOCK_N)
    for index in tl.static_range(BLOCK_N // PIECE):
        columns = column_tile * BLOCK_N + index * PIECE + tl.arange(0, PIECE)
        if hidden is None:
            part = hs[index]
        else:
            places = hidden + first_row * HIDDEN + rows[:, None] * HIDDEN + columns[None, :]
            part = tl.load(places, mask=inside[:, None] & (columns < HIDDEN)[None, :], other=0.0)
        store_hidden_gradients(
            gradients[index], part, dhidden, activated, sums, first_row, row_tile, columns, inside, HIDDEN, BLOCK_M
        )  # fmt: skip


# Output; normalised rows; the statistic of each; GELU's input. The last three are None if nothing is saved.
Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]

# Gradient of the hidden layer ``(R, H)``, the activated layer if needed, and the gradient's sums for ``totals``.
HiddenGradients = tuple[Tensor, Tensor | None, Tensor]


def forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    save_hidden: bool,
) -> tuple[Tensor | None, ...]:
    """Output like ``x``, and what to save; of the weights, only folded fc1 and cast fc2, which are not arguments."""
    w1, b1 = fold_norm(fc1_weight, fc1_bias, norm_weight, norm_bias, dtype)
    w2 = cast(fc2_weight, dtype)
    rule = form_rule(w1.shape[1], dtype, limits(x.device))
    out, *saved = _FORMS.run(rule, flat_rows(x), w1, b1, w2, fc2_bias, eps, save, save_hidden)
    if not save:
        return out.view_as(x), *(None,) * 6
    pairs = ((w1, fc1_weight), (b1, fc1_bias), (w2, fc2_weight))
    return out.view_as(x), *saved, *(None if ours is given else ours for ours, given in pairs)


def backward(
    dout: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The needed gradients of x, the norm's parameters (stacked), fc1's weight and bias, and fc2's weight and bias.

    ``w1`` and ``b1`` are fc1's after folding. The last bias's gradient is float32.
    """
    wants_x, wants_scale, wants_shift, wants_w1, wants_b1, wants_w2, wants_b2 = output_mask
    rows = flat_rows(dout)
    # Sums over rows are in float32; so is fc1's own, unless only its bias needs it.
    summed_in = fc1_weight.dtype if norm_bias is None else torch.float32
    low, sums_of_rows = column_sums(rows, w1.dtype) if wants_b2 else (cast(rows, w1.dtype), None)
    dhidden = activated = sums = None
    if any(output_mask[:6]):
        dhidden, activated, sums = _BACKWARD_FORMS.run(
            backward_form(w1.dtype), low, w1, b1, w2, x_hat, hidden, wants_w2
        )
    db1, db2 = totals((sums, summed_in), (sums_of_rows, torch.float32))
    dx = dnorm = dw1 = dw2 = None
    if activated is not None:
        dw2 = cast(low.t() @ activated, fc1_weight.dtype)
    if dhidden is not None and (wants_w1 or wants_scale or wants_shift):
        dfolded = dhidden.t() @ x_hat if wants_w1 or wants_scale else None
        mask = wants_w1, wants_scale, wants_shift
        dw1, dnorm = fold_norm_gradients(dfolded, db1, fc1_weight, norm_weight, norm_bias, mask)
    if dhidden is not None and wants_x:
        dx = normalize_backward(dhidden @ w1, x_hat, rstd, rows, dout.dtype).view_as(dout)
    return dx, dnorm, dw1, cast(db1, fc1_weight.dtype) if wants_b1 else None, dw2, db2


def _single(
    rows: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    eps: float,
    save: bool,
    save_hidden: bool,
) -> Results:
    """The forward pass in one kernel."""
    count, width = rows.shape
    out = torch.empty(count, width, dtype=rows.dtype, device=rows.device)
    x_hat = w1.new_empty(count, width) if save else None
    rstd = w1.new_empty(count, dtype=torch.float32) if save else None
    hidden = w1.new_empty(count, len(w1)) if save_hidden else None
    if out.numel():
        w1, b1, w2, b2 = unit_stride(w1), unit_stride_optional(b1), unit_stride(w2), unit_stride_optional(b2)
        choice = single_tiles(width, limits(rows.device))
        with on_device_of(rows):
            single_forward_kernel[(blocks(count, choice.block_m),)](
                rows, w1, b1, w2, b2, out, x_hat, rstd, hidden,
                rows.stride(0), w1.stride(0), w2.stride(0), count, eps,
                WIDTH=width, HIDDEN=len(w1), BLOCK_D=dot_extent(width), **choice.constants,
            )  # fmt: skip
    return out, x_hat, rstd, hidden


def _products(
    multiply: Product,
    rows: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    eps: float,
    save: bool,
    save_hidden: bool,
) -> Results:
    """Our own products, with GELU and residual epilogues."""
    x_hat, rstd = normalize(rows, eps, w1.dtype)
    hidden = x_hat.new_empty(len(rows), len(w1)) if save_hidden else None
    activated = multiply(x_hat, w1, b1, gelu=True, hidden=hidden)
    out = multiply(activated, w2, b2, residual=rows)
    return (out, x_hat, rstd, hidden) if save else (out, None, None, None)


def _library(
    rows: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    eps: float,
    save: bool,
    save_hidden: bool,
) -> Results:
    """cuBLAS's products, with separate passes for GELU and the residual."""
    x_hat, rstd = normalize(rows, eps, w1.dtype)
    hidden = F.linear(x_hat, w1, b1)
    out = rows + F.linear(F.gelu(hidden), w2, cast(b2, w2.dtype))
    return (out, x_hat, rstd, hidden if save_hidden else None) if save else (out, None, None, None)


def _tiled_hidden_backward(
    dout: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    hidden: Tensor | None,
    wants_activated: bool,
) -> HiddenGradients:
    """Both products and GELU's backward pass in one kernel."""
    (rows, width), hidden_width = x_hat.shape, len(w1)
    w1, b1, w2 = unit_stride(w1), unit_stride_optional(b1), unit_stride(w2)
    choice = hidden_tiles(hidden_width, width, w1.element_size(), hidden is not None, limits(dout.device))
    dhidden = x_hat.new_empty(rows, hidden_width)
    activated = torch.empty_like(dhidden) if wants_activated else None
    row_tiles = blocks(rows, choice.block_m)
    sums = x_hat.new_empty(row_tiles, hidden_width, dtype=torch.float32)
    if dhidden.numel():
        with on_device_of(dout):
            hidden_backward_kernel[(row_tiles * blocks(hidden_width, choice.block_n),)](
                dout, w2, x_hat, w1, b1, hidden, dhidden, activated, sums,
                dout.stride(0), w2.stride(0), w1.stride(0), rows,
                WIDTH=width, HIDDEN=hidden_width, GROUP=GROUP, PRECISION=input_precision(w1.dtype), **choice.constants,
            )  # fmt: skip
    return dhidden, activated, sums


def _library_hidden_backward(
    dout: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    x_hat: Tensor,
    hidden: Tensor | None,
    wants_activated: bool,
) -> HiddenGradients:
    """cuBLAS's products, and a separate pass for GELU."""
    h = F.linear(x_hat, w1, b1) if hidden is None else hidden
    return gelu_backward(dout @ w2, h, wants_activated)


_FORMS = Forms(
    "mlp",
    {
        "single": _single,
        "tiled": partial(_products, gemm),
        "persistent": partial(_products, persistent_gemm),
        "library": _library,
    },
    key=lambda rows, w1, b1, w2, b2, eps, save, save_hidden: (
        w1.shape, w1.dtype, input_precision(w1.dtype), rows.dtype, save and "save", save_hidden and "save hidden",
        described(w1, w2) and "described",
    ),
    refusals={
        "single": lambda rows, w1, *_: single_refusals(w1.shape[1], w1.dtype, limits(rows.device)),
        "persistent": lambda rows, w1, b1, w2, *_: persistent_refusals(
            w1.dtype, limits(rows.device), len(rows), (w1, w2), w1.shape
        ),
    },
)  # fmt: skip
_BACKWARD_FORMS = Forms(
    "mlp_backward",
    {"tiled": _tiled_hidden_backward, "library": _library_hidden_backward},
    key=lambda dout, w1, b1, w2, x_hat, hidden, wants_activated: (
        w1.shape, w1.dtype, input_precision(w1.dtype), hidden is not None and "saved", wants_activated and "activated"
    ),
    refusals={},
)  # fmt: skip
