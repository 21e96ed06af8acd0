"""Fold LayerNorm's affine into the next linear layer, in weight space, and compute the gradients.

``LN(x) W^T + b = x_hat (gamma * W)^T + (b + W beta)``, where ``x_hat`` is the row without its affine. Kernels then only
normalise, and gamma's and beta's gradients come from the weight's, without separate sums over tokens. Both passes read
and write each matrix once, and compute in float32.

Weights are passed as a tuple of n pointers to ``(O, I)``, with any row stride, and are never stacked. Results are
stacked and contiguous, ``(n, O, I)``, as are vectors, ``(n, O)`` and ``(n, I)``.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.runtime.autocast import cast
from crossmae_kernels.runtime.launch import alike, blocks, on_device_of, power_of_two, unit_stride

# Forward: 32 elements per thread of 128, in whole rows. More would share the norm's parameters, read from caches, among
# more rows, but leave a matrix of 512 x 512 with fewer than 64 programs.
FORWARD_TILE, WIDEST_BLOCK = 4096, 1024

# Backward: lines of 256 bytes in float32, and sums that are a fiftieth of the other traffic.
BACKWARD_ROWS, BACKWARD_COLUMNS = 64, 64


@triton.jit
def tile_of_rows(num_rows, BLOCK_ROWS: tl.constexpr):
    """A program's matrix, its rows, and which of them are inside; tiles are numbered matrix by matrix."""
    tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return matrix, rows.to(tl.int64), rows < num_rows


@triton.jit
def start_of(weights, matrix, MATRICES: tl.constexpr):
    """Pointer to one of the weights."""
    start = weights[0]
    for index in tl.static_range(1, MATRICES):
        start = tl.where(matrix == index, weights[index], start)
    return start


@triton.jit
def vector(start, places, inside):
    """Load part of a vector in float32; 0 outside."""
    return tl.load(start + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def sum_of_rows(tile, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Sum rows in two steps, as rounding errors grow with the number of terms added one after the other."""
    return tl.sum(tl.sum(tl.reshape(tile, (BLOCK_ROWS // 8, 8, BLOCK_COLUMNS)), axis=1), axis=0)


@triton.jit(do_not_specialize=["num_rows"])
def fold_forward_kernel(
    weights, bias, scale, shift, folded, folded_bias, weight_row, num_rows,
    MATRICES: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``folded = weight * scale`` and ``folded_bias = bias + weight shift``; missing tensors are None.

    Program: whole rows, so their products with ``shift`` are summed on chip.
    """
    matrix, rows, inside = tile_of_rows(num_rows, BLOCK_ROWS)
    weight = start_of(weights, matrix, MATRICES)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for first in range(0, WIDTH, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS)
        mask = inside[:, None] & (columns < WIDTH)[None, :]
        places = rows[:, None] * weight_row + columns[None, :]
        tile = tl.load(weight + places, mask=mask, other=0.0).to(tl.float32)
        if shift is not None:
            total += tl.sum(tile * vector(shift + matrix * WIDTH, columns, columns < WIDTH)[None, :], axis=1)
        if scale is not None:
            tile *= vector(scale + matrix * WIDTH, columns, columns < WIDTH)[None, :]
        places = (matrix * num_rows + rows)[:, None] * WIDTH + columns[None, :]
        tl.store(folded + places, tile.to(folded.dtype.element_ty), mask=mask)
    if folded_bias is not None:
        if bias is not None:
            total += vector(bias + matrix * num_rows, rows, inside)
        tl.store(folded_bias + matrix * num_rows + rows, total.to(folded_bias.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def fold_backward_kernel(
    dfolded, dfolded_bias, weights, scale, shift, dweight, dscale, dshift,
    dfolded_matrix, dfolded_row, weight_row, num_rows,
    MATRICES: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``dweight = dfolded * scale + dfolded_bias shift^T``, and sums over a tile's rows for ``dscale`` and ``dshift``.

    Program (tile of rows, tile of columns). The sums, ``(n * tiles of rows, WIDTH)`` in float32, are those of
    ``dfolded * weight`` and of ``dfolded_bias * weight``. Gradients that are not needed are None, and their inputs are
    not loaded.
    """
    matrix, rows, inside = tile_of_rows(num_rows, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    places = matrix * dfolded_matrix + rows[:, None] * dfolded_row + columns[None, :]
    if (dweight is not None) or (dscale is not None):
        gradient = tl.load(dfolded + places, mask=mask, other=0.0).to(tl.float32)
    if (shift is not None) and ((dweight is not None) or (dshift is not None)):
        bias_gradient = vector(dfolded_bias + matrix * num_rows, rows, inside)
    if (dscale is not None) or (dshift is not None):
        places = rows[:, None] * weight_row + columns[None, :]
        tile = tl.load(start_of(weights, matrix, MATRICES) + places, mask=mask, other=0.0).to(tl.float32)
        sums = tl.program_id(0).to(tl.int64) * WIDTH + columns
        if dscale is not None:
            total = sum_of_rows(gradient * tile, BLOCK_ROWS, BLOCK_COLUMNS)
            tl.store(dscale + sums, total, mask=columns < WIDTH)
        if dshift is not None:
            total = sum_of_rows(bias_gradient[:, None] * tile, BLOCK_ROWS, BLOCK_COLUMNS)
            tl.store(dshift + sums, total, mask=columns < WIDTH)
    if dweight is not None:
        if scale is not None:
            gradient *= vector(scale + matrix * WIDTH, columns, columns < WIDTH)[None, :]
        if shift is not None:
            gradient += bias_gradient[:, None] * vector(shift + matrix * WIDTH, columns, columns < WIDTH)[None, :]
        places = (matrix * num_rows + rows)[:, None] * WIDTH + columns[None, :]
        tl.store(dweight + places, gradient.to(dweight.dtype.element_ty), mask=mask)


def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weight ``(O, I)`` and bias ``(O,)`` in ``dtype``; the cast arguments if there is nothing to fold."""
    if norm_weight is None and norm_bias is None:
        return cast(weight, dtype), cast(bias, dtype)
    return _folded((unit_stride(weight),), bias, norm_weight, norm_bias, dtype, weight.shape)


def fold_norms(
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weights ``(n, O, I)`` and biases ``(n, O)`` of n weights ``(O, I)``, in ``dtype``."""
    weights = alike(weights)
    return _folded(weights, bias, norm_weight, norm_bias, dtype, (len(weights), *weights[0].shape))


def fold_norm_backward(
    dfolded: Tensor | None,
    dfolded_bias: Tensor | None,
    weights: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weights, stacked and contiguous, and of the norm's parameters ``(at most 2, ..., I)``.

    The mask is for weights, ``norm_weight`` and ``norm_bias``. The weights' gradients have their dtype; the norms' are
    stacked, in float32, or None if neither is needed. ``dfolded`` is ``(n, O, I)``, or ``(O, I)`` for a single weight,
    as are the gradients; it may be None if only ``norm_bias`` needs a gradient. ``dfolded_bias`` may be None without a
    ``norm_bias``, or if only ``norm_weight`` needs one.
    """
    weights = alike(weights)
    first, (rows, width) = weights[0], weights[0].shape
    wants_weight, wants_scale, wants_shift = output_mask
    if dfolded is None:
        dweight, gradients, strides, stack = None, None, (0, 0), torch.Size()
    else:
        dweight = torch.empty(*dfolded.shape, dtype=first.dtype, device=first.device) if wants_weight else None
        gradients = unit_stride(dfolded)
        stack = gradients.shape[:-2]
        strides = gradients.stride()[-3] if gradients.dim() > 2 else 0, gradients.stride(-2)
    row_tiles = blocks(rows, BACKWARD_ROWS)
    wanted = wants_scale + wants_shift
    sums = torch.empty(wanted, len(weights), row_tiles, width, dtype=torch.float32, device=first.device)
    dscale = sums[0] if wants_scale else None
    dshift = sums[-1] if wants_shift else None
    grid = (len(weights) * row_tiles, blocks(width, BACKWARD_COLUMNS))
    if all(grid):
        with on_device_of(first):
            fold_backward_kernel[grid](
                gradients, _dense(dfolded_bias), weights, _dense(norm_weight), _dense(norm_bias),
                dweight, dscale, dshift, *strides, first.stride(0), rows,
                MATRICES=len(weights), WIDTH=width, BLOCK_ROWS=BACKWARD_ROWS, BLOCK_COLUMNS=BACKWARD_COLUMNS,
            )  # fmt: skip
    return dweight, sums.sum(2).view(wanted, *stack, width) if wanted else None


def fold_norm_gradients(
    dfolded: Tensor | None,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The same for a single weight ``(O, I)``, which may have nothing folded in."""
    if norm_weight is None and norm_bias is None:
        return cast(dfolded, weight.dtype), None
    return fold_norm_backward(dfolded, dfolded_bias, (weight,), norm_weight, norm_bias, output_mask)


@functools.cache
def forward_tile(width: int) -> tuple[int, int]:
    """Rows and columns that a program processes at a time."""
    columns = min(power_of_two(width), WIDEST_BLOCK)
    return FORWARD_TILE // columns, columns


def _folded(
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    first, (rows, width) = weights[0], shape[-2:]
    folded = torch.empty(*shape, dtype=dtype, device=first.device)
    has_bias = bias is not None or norm_bias is not None
    folded_bias = torch.empty(*shape[:-1], dtype=dtype, device=first.device) if has_bias else None
    block_rows, block_columns = forward_tile(width)
    programs = len(weights) * blocks(rows, block_rows)
    if programs:
        with on_device_of(first):
            fold_forward_kernel[(programs,)](
                weights, _dense(bias), _dense(norm_weight), _dense(norm_bias), folded, folded_bias,
                first.stride(0), rows,
                MATRICES=len(weights), WIDTH=width, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
            )  # fmt: skip
    return folded, folded_bias


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
