"""Mixing of feature maps on the GPU: device code, then the launchers.

A program works through tokens. All mixes of a token are a matrix product of the weights, (mixes, maps), with the
token's rows of the maps, (maps, channels). Rows are cut into panels of a few hundred channels. Every warp owns a slice
of each panel and multiplies on its own: tiles are ``(slices, ., .)`` with one slice per warp, and only statistics pass
between warps.

*Normalised*, a program holds all panels of a token. The forward pass finds mean and variance of the mixes and writes
``x_hat = (w m - mean) rstd``. The backward pass is LayerNorm's, ``d = rstd (dy - mean(dy) - x_hat mean(dy x_hat))``,
then ``w^T d`` for the maps and ``d m^T`` for the weights. It sweeps over the panels twice. The first sweep recomputes
``x_hat``, finds both means and, with the maps at hand and before the means are known, all terms of the weights'
gradient: ``d m^T = rstd (dy m^T - mean(dy) 1 m^T - mean(dy x_hat) x_hat m^T)``. So the second sweep needs no maps.
Between the two, ``x_hat`` stays on chip, rounded as products require, and so do the upstream gradients if there is room
(``HOLD_DOUT``); otherwise these are read again, soon after the first time.

``BY_PRODUCTS`` leaves as much as possible to the tensor cores, which are idle otherwise. Sums over channels are
products with ones, and those of ``dy x_hat`` the diagonal of a product. ``w^T d`` is the sum of ``(rstd w)^T dy``,
``-(rstd mean(dy x_hat) w)^T x_hat`` and a term that is equal for all channels, so no elementwise work remains.

*Not normalised*, panels are independent, and each is a program of its own.

Gradients of the weights are summed by each program over its tokens: partial sums, no atomics. The maps come as a tuple
of pointers, are multiplied ``BLOCK`` at a time, and are never stacked. Nor are their gradients: each has its own
memory, which is freed as soon as the encoder's backward pass has used it.
"""

# mypy: disable-error-code="assignment, unreachable, var-annotated"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.feature_mixing.config import (
    ALL_REGISTERS,
    NUM_WARPS,
    MixingTiles,
    backward_stages,
    backward_tiles,
    forward_registers,
    forward_stages,
    forward_tiles,
    held,
    holds_upstream_gradients,
    sums_by_products,
)
from crossmae_kernels.primitives import normalization
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.runtime.launch import alike, blocks, input_precision, on_device_of, unit_stride

# Counts that change from batch to batch; they do not specialize the compiled kernel.
COUNTS = ["tokens", "tokens_per_image"]

# Maps multiplied at a time: the depth of a matrix instruction.
BLOCK = tl.constexpr(16)


@triton.jit
def starts_of(maps, rows, MAPS: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the maps with indices ``rows``."""
    zeros = tl.zeros_like(rows)
    starts = maps[0] + zeros
    for index in tl.static_range(1, MAPS):
        starts = tl.where(rows == index, maps[index] + zeros, starts)
    if ALIGNED:
        starts = tl.multiple_of(starts, 16)
    return starts


@triton.jit
def columns_of(panel, SLICES: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels of a panel, (slices, 1, channels)."""
    slices, channels = tl.arange(0, SLICES), tl.arange(0, CHANNELS)
    return panel * SLICES * CHANNELS + (slices * CHANNELS)[:, None, None] + channels[None, None, :]


@triton.jit
def load_maps(maps, offset, first, columns, width, MAPS: tl.constexpr, ALIGNED: tl.constexpr):
    """One token's rows of the maps from ``first`` on, (slices, BLOCK, channels)."""
    rows = first + tl.arange(0, BLOCK)
    pointers = (starts_of(maps, rows, MAPS, ALIGNED) + offset)[None, :, None] + columns
    return tl.load(pointers, mask=(rows < MAPS)[None, :, None] & (columns < width), other=0.0)


@triton.jit
def load_weights(
    weight, first, num_mixes, MAPS: tl.constexpr, BLOCK_MIXES: tl.constexpr, SLICES: tl.constexpr
):  # fmt: skip
    """Weights of the maps from ``first`` on, the same for each slice: (slices, mixes, BLOCK)."""
    mixes, rows = tl.arange(0, BLOCK_MIXES), first + tl.arange(0, BLOCK)
    inside = (mixes < num_mixes)[:, None] & (rows < MAPS)[None, :]
    tile = tl.load(weight + mixes[:, None] * MAPS + rows[None, :], mask=inside, other=0.0)
    return tl.broadcast_to(tile[None, :, :], (SLICES, BLOCK_MIXES, BLOCK))


@triton.jit
def mean_of_slices(sums, width):
    """Mean over all channels, as (1, mixes, 1), from each slice's sum, (slices, mixes)."""
    return (tl.sum(sums, axis=0) / width)[None, :, None]


@triton.jit(do_not_specialize=COUNTS)
def mixing_forward_kernel(
    maps, weight, out, means, rstds,
    map_image, map_row, tokens, tokens_per_image, num_mixes, width, eps,
    MAPS: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_MIXES: tl.constexpr,
    SLICES: tl.constexpr, CHANNELS: tl.constexpr, PANELS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (part of the tokens, part with ``PANELS`` panels).

    ``out`` (mixes, tokens, width); normalised, ``means`` and ``rstds`` (mixes, tokens) too: 1 / standard deviation.
    """
    mixes = tl.arange(0, BLOCK_MIXES)[None, :, None]
    first_panel = tl.program_id(1) * PANELS
    zeros = tl.zeros((SLICES, BLOCK_MIXES, CHANNELS), dtype=tl.float32)
    for step in tl.range(tl.program_id(0), tokens, tl.num_programs(0), disable_licm=True):
        token = step + tl.full((), 0, dtype=tl.int64)
        offset = token // tokens_per_image * map_image + token % tokens_per_image * map_row
        panels, weights = (), ()
        for first in tl.static_range(0, MAPS, BLOCK):
            weights = weights + (load_weights(weight, first, num_mixes, MAPS, BLOCK_MIXES, SLICES),)
        total = tl.zeros((SLICES, BLOCK_MIXES), dtype=tl.float32)
        for panel in tl.static_range(PANELS):
            columns = columns_of(first_panel + panel, SLICES, CHANNELS)
            mixed = zeros
            for first in tl.static_range(0, MAPS, BLOCK):
                rows = load_maps(maps, offset, first, columns, width, MAPS, ALIGNED).to(weight.dtype.element_ty)
                mixed = tl.dot(weights[first // BLOCK], rows, mixed, input_precision=PRECISION)
            panels = panels + (mixed,)
            total += tl.sum(mixed, axis=2)
        if NORMALIZE:
            mean = mean_of_slices(total, width)
            squares = tl.zeros((SLICES, BLOCK_MIXES), dtype=tl.float32)
            left = tl.zeros((SLICES, BLOCK_MIXES), dtype=tl.float32)
            for panel in tl.static_range(PANELS):
                centred = tl.where(columns_of(panel, SLICES, CHANNELS) < width, panels[panel] - mean, 0.0)
                squares += tl.sum(centred * centred, axis=2)
                left += tl.sum(centred, axis=2)
            # The rest of the mean left by rounding, which matters if a row varies little.
            mean += mean_of_slices(left, width)
            rstd = 1 / tl.sqrt_rn(mean_of_slices(squares, width) + eps)
            places = mixes.to(tl.int64) * tokens + token
            tl.store(means + places, mean, mask=mixes < num_mixes)
            tl.store(rstds + places, rstd, mask=mixes < num_mixes)
        for panel in tl.static_range(PANELS):
            columns = columns_of(first_panel + panel, SLICES, CHANNELS)
            mixed = panels[panel]
            if NORMALIZE:
                mixed = (mixed - mean) * rstd
            pointers = out + (mixes.to(tl.int64) * tokens + token) * width + columns
            tl.store(pointers, mixed.to(out.dtype.element_ty), mask=(mixes < num_mixes) & (columns < width))


@triton.jit
def packed(tile):
    """A tile packed into 32-bit words: 16-bit neighbours in the last dimension share a word."""
    words = tile
    if tile.dtype.primitive_bitwidth == 16:
        low, high = tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2)))
        words = high.to(tl.uint16, bitcast=True).to(tl.uint32) << 16 | low.to(tl.uint16, bitcast=True).to(tl.uint32)
    return words


@triton.jit
def unpacked(words, DTYPE: tl.constexpr):
    """The tile that was ``packed``."""
    tile = words
    if DTYPE.primitive_bitwidth == 16:
        pairs = tl.join((words & 0xFFFF).to(tl.uint16), (words >> 16).to(tl.uint16)).to(DTYPE, bitcast=True)
        tile = tl.reshape(pairs, (words.shape[0], words.shape[1], words.shape[2] * 2))
    return tile


@triton.jit
def with_panel(panels, panel, tile, PANELS: tl.constexpr):
    """The tuple ``panels`` with ``tile`` at index ``panel``: one selection per index, as registers have no addresses.

    This keeps loops over panels rolled. Unrolled, loads of all panels would be issued early and registers run out.
    """
    chosen = ()
    for place in tl.static_range(PANELS):
        chosen = chosen + (tl.where(panel == place, tile, panels[place]),)
    return chosen


@triton.jit
def panel_of(panels, panel, PANELS: tl.constexpr):
    """The tile at index ``panel`` of the tuple ``panels``."""
    tile = panels[0]
    for place in tl.static_range(1, PANELS):
        tile = tl.where(panel == place, panels[place], tile)
    return tile


@triton.jit
def store_dmaps(dmaps, tile, token, first, columns, width, MAPS: tl.constexpr):
    """Write a panel of one token's rows of the gradients of the maps from ``first`` on."""
    rows = first + tl.arange(0, BLOCK)
    # They start where the allocator places them, which is aligned.
    pointers = (starts_of(dmaps, rows, MAPS, True) + token * width)[None, :, None] + columns
    tl.store(pointers, tile.to(dmaps[0].dtype.element_ty), mask=(rows < MAPS)[None, :, None] & (columns < width))


@triton.jit
def store_dweight(dweight, sums, program, first, num_mixes, MAPS: tl.constexpr, BLOCK_MIXES: tl.constexpr):
    """Write a program's part of the weights' gradient, in ``sums`` by slice, for the maps from ``first`` on."""
    mixes, rows = tl.arange(0, BLOCK_MIXES)[:, None], first + tl.arange(0, BLOCK)[None, :]
    pointers = dweight + (program * num_mixes + mixes) * MAPS + rows
    tl.store(pointers, tl.sum(sums, axis=0), mask=(mixes < num_mixes) & (rows < MAPS))


@triton.jit
def plus_sums_of_rows(total, tile):
    """Add the sums of the tile's rows to every column of ``total``, by a product with ones."""
    return tl.dot(tile, tl.full((tile.shape[0], tile.shape[2], total.shape[2]), 1, dtype=tile.dtype), total)


@triton.jit
def plus_sums_of_columns(total, tile):
    """Add the sums of the tile's columns to every row of ``total``."""
    return tl.dot(tl.full((tile.shape[0], total.shape[1], tile.shape[1]), 1, dtype=tile.dtype), tile, total)


@triton.jit
def diagonal(tile):
    """The diagonal of each slice, (slices, mixes)."""
    places = tl.arange(0, tile.shape[1])
    return tl.sum(tl.where((places[:, None] == places[None, :])[None, :, :], tile, 0.0), axis=2)


@triton.jit(do_not_specialize=COUNTS)
def mixing_backward_kernel(
    maps, weight, means, rstds, dout, dmaps, dweight,
    map_image, map_row, dout_mix, dout_image, dout_row, tokens, tokens_per_image, num_mixes, width,
    MAPS: tl.constexpr, BLOCK_MIXES: tl.constexpr, SLICES: tl.constexpr, CHANNELS: tl.constexpr,
    PANELS: tl.constexpr, HOLD_DOUT: tl.constexpr, BY_PRODUCTS: tl.constexpr,
    ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Normalised mixes. Program: a part of the tokens. ``dmaps`` or ``dweight`` may be None.

    ``means``, ``rstds`` and ``dweight`` are float32; maps and their gradients may be, even if the rest is 16 bits wide.
    ``dmaps``, one for each map, (tokens, width); ``dweight`` (programs, mixes, maps), to be summed.
    """
    dtype: tl.constexpr = weight.dtype.element_ty
    mixes = tl.arange(0, BLOCK_MIXES)[None, :, None]
    known = mixes < num_mixes
    nothing_held = packed(tl.zeros((SLICES, BLOCK_MIXES, CHANNELS), dtype=dtype))
    no_sums = tl.zeros((SLICES, BLOCK_MIXES, BLOCK), dtype=tl.float32)
    UNROLL: tl.constexpr = PANELS if BY_PRODUCTS else 1
    dweights = ()
    for _ in tl.static_range(0, MAPS, BLOCK):
        dweights = dweights + (no_sums,)
    for step in tl.range(tl.program_id(0), tokens, tl.num_programs(0), disable_licm=True):
        # Divided in 32 bits, like counts: in 64 bits it takes a hundred instructions more.
        wide = tl.full((), 0, dtype=tl.int64)
        token, image, place = step + wide, step // tokens_per_image + wide, step % tokens_per_image + wide
        offset = image * map_image + place * map_row
        dout_rows = dout + mixes.to(tl.int64) * dout_mix + image * dout_image + place * dout_row
        places = mixes.to(tl.int64) * tokens + token
        mean = tl.load(means + places, mask=known, other=0.0)
        rstd = tl.load(rstds + places, mask=known, other=1.0)
        if BY_PRODUCTS:
            shift = tl.zeros((SLICES, BLOCK_MIXES, BLOCK_MIXES), dtype=tl.float32)
            slope = tl.zeros((SLICES, BLOCK_MIXES, BLOCK_MIXES), dtype=tl.float32)
        else:
            shift = tl.zeros((SLICES, BLOCK_MIXES), dtype=tl.float32)
            slope = tl.zeros((SLICES, BLOCK_MIXES), dtype=tl.float32)
        douts, x_hats = (), ()
        for _ in tl.static_range(PANELS):
            x_hats = x_hats + (nothing_held,)
            if HOLD_DOUT:
                douts = douts + (nothing_held,)
        # dy m^T is added to the sum over tokens so far, which is rescaled to units of this token's deviation for that.
        weights, by_dout, by_x_hat, sums = (), (), (), ()
        for first in tl.static_range(0, MAPS, BLOCK):
            weights = weights + (load_weights(weight, first, num_mixes, MAPS, BLOCK_MIXES, SLICES),)
            by_dout = by_dout + (dweights[first // BLOCK] / rstd,)
            by_x_hat = by_x_hat + (no_sums,)
            sums = sums + (no_sums if BY_PRODUCTS else tl.zeros((SLICES, BLOCK), dtype=tl.float32),)
        for panel in tl.range(PANELS, disable_licm=True, loop_unroll_factor=UNROLL):
            columns = columns_of(panel, SLICES, CHANNELS)
            d = tl.load(dout_rows + columns, mask=known & (columns < width), other=0.0)
            mixed = tl.zeros((SLICES, BLOCK_MIXES, CHANNELS), dtype=tl.float32)
            rows = ()
            for first in tl.static_range(0, MAPS, BLOCK):
                rows = rows + (load_maps(maps, offset, first, columns, width, MAPS, ALIGNED).to(dtype),)
                mixed = tl.dot(weights[first // BLOCK], rows[first // BLOCK], mixed, input_precision=PRECISION)
            x_hat = mixed * rstd - mean * rstd
            if BY_PRODUCTS:
                x_hat = x_hat.to(dtype)
                shift = plus_sums_of_rows(shift, d)
                slope = tl.dot(d, tl.permute(x_hat, (0, 2, 1)), slope)
            else:
                shift += tl.sum(d.to(tl.float32), axis=2)
                slope += tl.sum(d.to(tl.float32) * x_hat, axis=2)
                x_hat = x_hat.to(dtype)
            x_hats = with_panel(x_hats, panel, packed(x_hat), PANELS)
            if HOLD_DOUT:
                douts = with_panel(douts, panel, packed(d), PANELS)
            if dweight is not None:
                by_dout_before, by_x_hat_before, sums_before = by_dout, by_x_hat, sums
                by_dout, by_x_hat, sums = (), (), ()
                for block in tl.static_range((MAPS + BLOCK - 1) // BLOCK):
                    columns_first = tl.permute(rows[block], (0, 2, 1))
                    by_dout = by_dout + (tl.dot(d, columns_first, by_dout_before[block], input_precision=PRECISION),)
                    by_x_hat = by_x_hat + (
                        tl.dot(x_hat, columns_first, by_x_hat_before[block], input_precision=PRECISION),
                    )
                    if BY_PRODUCTS:
                        sums = sums + (plus_sums_of_columns(sums_before[block], columns_first),)
                    else:
                        sums = sums + (sums_before[block] + tl.sum(rows[block].to(tl.float32), axis=2),)
        if BY_PRODUCTS:
            shift, slope = diagonal(shift), diagonal(slope)
        shift, slope = mean_of_slices(shift, width), mean_of_slices(slope, width)
        dweights = ()
        for block in tl.static_range((MAPS + BLOCK - 1) // BLOCK):
            sum_of_maps = sums[block] if BY_PRODUCTS else sums[block][:, None, :]
            along = shift * sum_of_maps + slope * by_x_hat[block]
            dweights = dweights + (rstd * (by_dout[block] - along),)
        if dmaps is not None:
            if BY_PRODUCTS:
                of_dout, of_x_hat, rest = (), (), ()
                for block in tl.static_range((MAPS + BLOCK - 1) // BLOCK):
                    scaled = weights[block].to(tl.float32) * rstd
                    of_dout = of_dout + (tl.permute(scaled.to(dtype), (0, 2, 1)),)
                    of_x_hat = of_x_hat + (tl.permute((-slope * scaled).to(dtype), (0, 2, 1)),)
                    rest = rest + (-tl.sum(shift * scaled, axis=1),)
            for panel in tl.range(PANELS, num_stages=1, disable_licm=True, loop_unroll_factor=UNROLL):
                columns = columns_of(panel, SLICES, CHANNELS)
                if HOLD_DOUT:
                    d = unpacked(panel_of(douts, panel, PANELS), dtype)
                else:
                    d = tl.load(dout_rows + columns, mask=known & (columns < width), other=0.0)
                x_hat = unpacked(panel_of(x_hats, panel, PANELS), dtype)
                if not BY_PRODUCTS:
                    d = d.to(tl.float32) - shift - slope * x_hat.to(tl.float32)
                    d = tl.where(columns < width, rstd * d, 0.0).to(dtype)
                for first in tl.static_range(0, MAPS, BLOCK):
                    if BY_PRODUCTS:
                        tile = tl.broadcast_to(rest[first // BLOCK][:, :, None], (SLICES, BLOCK, CHANNELS))
                        tile = tl.dot(of_dout[first // BLOCK], d, tile)
                        tile = tl.dot(of_x_hat[first // BLOCK], x_hat, tile)
                    else:
                        again = load_weights(weight, first, num_mixes, MAPS, BLOCK_MIXES, SLICES)
                        tile = tl.dot(tl.permute(again, (0, 2, 1)), d, input_precision=PRECISION)
                    store_dmaps(dmaps, tile, token, first, columns, width, MAPS)
    if dweight is not None:
        for first in tl.static_range(0, MAPS, BLOCK):
            store_dweight(dweight, dweights[first // BLOCK], tl.program_id(0), first, num_mixes, MAPS, BLOCK_MIXES)


@triton.jit(do_not_specialize=COUNTS)
def sums_backward_kernel(
    maps, weight, dout, dmaps, dweight,
    map_image, map_row, dout_mix, dout_image, dout_row, tokens, tokens_per_image, num_mixes, width,
    MAPS: tl.constexpr, BLOCK_MIXES: tl.constexpr, SLICES: tl.constexpr, CHANNELS: tl.constexpr,
    ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Plain mixes. Program (part of the tokens, panel). ``dmaps`` or ``dweight`` may be None.

    ``dmaps``, one for each map, (tokens, width); ``dweight`` (programs, mixes, maps), to be summed.
    """
    mixes = tl.arange(0, BLOCK_MIXES)[None, :, None]
    columns = columns_of(tl.program_id(1), SLICES, CHANNELS)
    dweights = ()
    for _ in tl.static_range(0, MAPS, BLOCK):
        dweights = dweights + (tl.zeros((SLICES, BLOCK_MIXES, BLOCK), dtype=tl.float32),)
    for step in tl.range(tl.program_id(0), tokens, tl.num_programs(0), disable_licm=True):
        token = step + tl.full((), 0, dtype=tl.int64)
        image, place = token // tokens_per_image, token % tokens_per_image
        offset = image * map_image + place * map_row
        dout_rows = dout + mixes.to(tl.int64) * dout_mix + image * dout_image + place * dout_row
        d = tl.load(dout_rows + columns, mask=(mixes < num_mixes) & (columns < width), other=0.0)
        for block in tl.range((MAPS + BLOCK - 1) // BLOCK, disable_licm=True):
            first = block * BLOCK
            if dmaps is not None:
                weights = load_weights(weight, first, num_mixes, MAPS, BLOCK_MIXES, SLICES)
                tile = tl.dot(tl.permute(weights, (0, 2, 1)), d, input_precision=PRECISION)
                store_dmaps(dmaps, tile, token, first, columns, width, MAPS)
            if dweight is not None:
                rows = load_maps(maps, offset, first, columns, width, MAPS, ALIGNED).to(d.dtype)
                sums = panel_of(dweights, block, len(dweights))
                sums = tl.dot(d, tl.permute(rows, (0, 2, 1)), sums, input_precision=PRECISION)
                dweights = with_panel(dweights, block, sums, len(dweights))
    if dweight is not None:
        program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        for first in tl.static_range(0, MAPS, BLOCK):
            store_dweight(dweight, dweights[first // BLOCK], program, first, num_mixes, MAPS, BLOCK_MIXES)


# Programs per multiprocessor, which share the tokens: more than fit at once, to balance the tail.
PROGRAMS_PER_MULTIPROCESSOR = 8


def forward(
    maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mixes ``(n, B, K, E)`` in the dtype of the weights and, normalised, means and 1 / standard deviations.

    These are float32 ``(n, B, K)``; means only if the kernel normalises, as only its backward pass needs them.
    """
    first, mixes, width = maps[0], weight.shape[0], maps[0].shape[2]
    on_chip = normalize and held(mixes, width, weight.element_size())
    call = _Call(maps, weight, forward_tiles(mixes, width, weight.element_size()), on_chip)
    out = weight.new_empty(mixes, *first.shape)
    means, rstds = (first.new_empty(out.shape[:3], dtype=torch.float32) if on_chip else None for _ in range(2))
    stages = 1
    if on_chip:
        stages = forward_stages(len(maps), width, first.element_size(), limits(first.device).shared_memory)
    if out.numel():
        with on_device_of(first):
            mixing_forward_kernel[call.grid](
                *call.inputs(), out, means, rstds, *call.strides(), *call.counts, mixes, width, eps,
                NORMALIZE=on_chip, PANELS=call.panels // call.grid[1], **call.constants(),
                num_stages=stages, maxnreg=forward_registers(weight.element_size()),
            )  # fmt: skip
    if normalize and not on_chip:
        rows, rstds = normalization.normalize(out.flatten(0, 2), eps, out.dtype)
        out, rstds = rows.view_as(out), rstds.view(out.shape[:3])
    return out, means, rstds


def backward(
    dout: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    mixes: Tensor | None,
    means: Tensor | None,
    rstds: Tensor | None,
    normalize: bool,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor | None]:
    """The needed gradients of the maps, each ``(B, K, E)``, and of the weights.

    Normalised ``mixes`` are given if LayerNorm's gradient is a separate pass.
    """
    first, width = maps[0], maps[0].shape[2]
    dmaps = [first.new_empty(first.shape) for _ in maps] if output_mask[0] else []
    if not first.numel():
        return dmaps, torch.zeros_like(weight) if output_mask[1] else None
    on_chip = normalize and mixes is None
    if mixes is not None and rstds is not None:
        rows = unit_stride(dout).reshape(-1, width)
        dout = normalization.normalize_backward(rows, mixes.flatten(0, 2), rstds.flatten(), None, dout.dtype)
        dout = dout.view_as(mixes)
    dout, count = unit_stride(dout), weight.shape[0]
    call = _Call(maps, weight, backward_tiles(count, width, weight.element_size(), on_chip), on_chip)
    dweight = None
    if output_mask[1]:
        dweight = first.new_empty(call.grid[0] * call.grid[1], *weight.shape, dtype=torch.float32)
    options = {**call.constants(), "maxnreg": ALL_REGISTERS}
    gradients = dout, tuple(dmaps) or None, dweight, *call.strides(), *dout.stride()[:3], *call.counts, count, width
    with on_device_of(first):
        if on_chip:
            size, on = weight.element_size(), limits(weight.device)
            by_products = sums_by_products(maps, weight, on)
            columns = call.tiles.panel * (call.panels if by_products else 1)
            mixing_backward_kernel[call.grid](
                *call.inputs(), means, rstds, *gradients, PANELS=call.panels,
                HOLD_DOUT=holds_upstream_gradients(count, width, size), BY_PRODUCTS=by_products,
                num_stages=backward_stages(len(maps), count, columns, first.element_size(), size, on), **options,
            )  # fmt: skip
        else:
            sums_backward_kernel[call.grid](*call.inputs(), *gradients, num_stages=1, **options)
    return dmaps, None if dweight is None else dweight.sum(0).to(weight.dtype)


class _Call:
    """A call's launch parameters; ``whole_tokens`` if a program processes all panels of its tokens."""

    def __init__(self, maps: Sequence[Tensor], weight: Tensor, choice: MixingTiles, whole_tokens: bool) -> None:
        self.maps, self.weight, self.tiles = alike(maps), weight.contiguous(), choice
        batch, tokens, width = maps[0].shape
        self.counts = batch * tokens, tokens
        self.panels = choice.panels(width)
        shares = 1 if whole_tokens else self.panels
        programs = PROGRAMS_PER_MULTIPROCESSOR * limits(weight.device).multiprocessors
        # Programs that share the tokens, and programs that share a row.
        self.grid = min(batch * tokens, blocks(programs, shares)), shares

    def inputs(self) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.maps, self.weight

    def strides(self) -> tuple[int, ...]:
        """Strides of an image and of a row."""
        return self.maps[0].stride()[:2]

    def constants(self) -> dict[str, Any]:
        bytes_between = [stride * self.maps[0].element_size() for stride in self.strides()]
        return {
            "MAPS": len(self.maps),
            **self.tiles.constants,
            "SLICES": NUM_WARPS,
            "ALIGNED": all(place % 16 == 0 for place in [*(m.data_ptr() for m in self.maps), *bytes_between]),
            "PRECISION": input_precision(self.weight.dtype),
            "num_warps": NUM_WARPS,
        }
