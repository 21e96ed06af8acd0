"""The MLP on the GPU: device code of what the shared kernels do not do.

``single_forward`` keeps the hidden layer on chip: a program holds its rows, normalised, and walks over the hidden
units in chunks, each multiplied into the output as soon as it is activated. ``hidden_backward`` finds the hidden layer
again, or reads it, beside the gradient that reaches it, so that GELU's backward pass is an epilogue of both.
"""

# Compile-time arguments are in capitals, and nothing is annotated but them, as everywhere in the field.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from crossmae_kernels.primitives.gelu import gelu, store_hidden_gradients
from crossmae_kernels.primitives.gemm import place_of_tile, product
from crossmae_kernels.primitives.normalization import normalized_rows


@triton.jit(do_not_specialize=["num_rows"])
def single_forward(
    x, w1, b1, w2, b2, out, x_hat, rstd, hidden, x_row, w1_row, w2_row, num_rows, eps,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """``out = x + gelu(x_hat w1^T + b1) w2^T + b2``; program: a tile of whole rows.

    ``b1`` and ``b2`` may be None; so may ``x_hat`` with ``rstd``, and ``hidden``, where the backward pass does not
    want them.
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
def hidden_backward(
    dout, w2, x_hat, w1, b1, hidden, dhidden, activated, sums, dout_row, w2_row, w1_row, num_rows,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``dhidden = (dout w2) gelu'(h)``, ``activated = gelu(h)``, and sums of dhidden's columns over each row tile.

    ``h`` is ``hidden`` where it was kept, else ``x_hat w1^T + b1`` rounded alike. Program: one tile of both.
    """
    row_tile, column_tile = place_of_tile(num_rows, HIDDEN, BLOCK_M, BLOCK_N, GROUP)
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
    if hidden is not None:
        mask = inside[:, None] & (columns < HIDDEN)[None, :]
        h = tl.load(hidden + first_row * HIDDEN + rows[:, None] * HIDDEN + columns[None, :], mask=mask, other=0.0)
    store_hidden_gradients(gradient, h, dhidden, activated, sums, first_row, row_tile, columns, inside, HIDDEN, BLOCK_M)
