"""Patches on the GPU: device code.

Pixels are read in the order of the image, where neighbours along a line of pixels are neighbours in memory and a
patch of 16 pixels a line takes 128-bit loads, and written in the order of a row, (row, column, channel). In between
the tile is transposed through shared memory. Three channels are padded to four, so accesses to rows are as wide as
one element, but neighbouring lanes touch neighbouring addresses.

The alternatives, compiled for compute capability 8.0 and 9.0: reading pixels straight in the order of a row takes
loads of one element, neighbours of which are a channel apart, and three times as many instructions, which in 16 bits
would take longer than memory does; ``tl.gather`` between two dense tiles becomes a thousand shuffles.

Conventions: a *line* is one channel of one patch, a *point* all channels of one pixel, so that tiles are
``(lines, pixels)`` in the order of the image and ``(points, channels)`` in the order of a row. Both are two-dimensional
because Triton 3.6 lays threads along the wrong one of several outer dimensions. Patches are numbered through all
images; ``picked`` is a patch's id within its image. A patch whose id is out of range is never read and comes out as
NaN.
"""

# Compile-time arguments are in capitals, and nothing is annotated but them, as everywhere in the field.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

# Counts, and strides made of them, that change from batch to batch: one compiled kernel serves all of them.
COUNTS = ["total", "per_image", "patches", "columns", "ids_image"]


@triton.jit
def pixel_places(PATCH: tl.constexpr, BLOCK_P: tl.constexpr):
    """Row and column of each pixel of a padded patch, and whether it is one of the patch's own."""
    pixels = tl.arange(0, BLOCK_P * BLOCK_P)
    rows, columns = pixels // BLOCK_P, pixels % BLOCK_P
    return rows, columns, (rows < PATCH) & (columns < PATCH)


@triton.jit
def load_pixels(
    images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Patches ``first`` to ``first + PATCHES`` as a tile (lines, pixels), 0 around them, and where they are in it."""
    lines = tl.arange(0, PATCHES * BLOCK_C)
    number, channel = first + lines // BLOCK_C, lines % BLOCK_C
    inside = (number < total) & (channel < CHANNELS)
    image = (number // per_image).to(tl.int64)
    picked = tl.load(ids + image * ids_image + number % per_image, mask=inside, other=0)
    known = (picked >= 0) & (picked < patches)
    picked = picked.to(tl.int32)
    row, column, within = pixel_places(PATCH, BLOCK_P)
    top, left = picked // columns * PATCH, picked % columns * PATCH
    if WIDE:
        channel, top, left = channel.to(tl.int64), top.to(tl.int64), left.to(tl.int64)
        row, column = row.to(tl.int64), column.to(tl.int64)
    corner = channel * channel_stride + top * row_stride + left * column_stride
    base = images + image * image_stride + corner
    offsets = row * row_stride + column * column_stride
    there = inside[:, None] & within[None, :]
    pointers, read = base[:, None] + offsets[None, :], there & known[:, None]
    lost = tl.where(known, 0.0, float("nan"))
    if mean is None:
        tile = tl.load(pointers, mask=read, other=lost[:, None].to(images.dtype.element_ty))
    else:
        factor = tl.div_rn(1.0, 255 * tl.load(std + channel, mask=inside, other=1.0))
        shift = lost - 255 * tl.load(mean + channel, mask=inside, other=0.0) * factor
        tile = tl.load(pointers, mask=read, other=0).to(tl.float32) * factor[:, None] + shift[:, None]
        tile = tl.where(there, tile, 0.0)
    return tile, there


@triton.jit
def to_points(tile, PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """(lines, pixels) -> (points, channels)."""
    tile = tl.reshape(tile, (PATCHES, BLOCK_C, BLOCK_P * BLOCK_P))
    return tl.reshape(tl.permute(tile, (0, 2, 1)), (PATCHES * BLOCK_P * BLOCK_P, BLOCK_C))


@triton.jit
def row_places(
    count, CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile (points, channels) in dense rows, and which of it belong to the first ``count`` rows."""
    points = tl.arange(0, PATCHES * BLOCK_P * BLOCK_P)
    patch, pixel = points // (BLOCK_P * BLOCK_P), points % (BLOCK_P * BLOCK_P)
    row, column = pixel // BLOCK_P, pixel % BLOCK_P
    channel = tl.arange(0, BLOCK_C)
    offsets = patch * (PATCH * PATCH * CHANNELS) + (row * PATCH + column) * CHANNELS
    inside = (patch < count) & (row < PATCH) & (column < PATCH)
    return offsets[:, None] + channel[None, :], inside[:, None] & (channel < CHANNELS)[None, :]


@triton.jit(do_not_specialize=COUNTS)
def gather_forward(
    images, ids, mean, std, out, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (group of patches)."""
    first = tl.program_id(0) * PATCHES
    tile, _ = load_pixels(
        images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
        image_stride, channel_stride, row_stride, column_stride,
        CHANNELS, PATCH, PATCHES, BLOCK_C, BLOCK_P, WIDE,
    )  # fmt: skip
    offsets, inside = row_places(total - first, CHANNELS, PATCH, PATCHES, BLOCK_C, BLOCK_P)
    out += first.to(tl.int64) * (PATCH * PATCH * CHANNELS)
    tl.store(out + offsets, to_points(tile.to(out.dtype.element_ty), PATCHES, BLOCK_C, BLOCK_P), mask=inside)


@triton.jit(do_not_specialize=[*COUNTS, "dout_image"])
def gather_backward(
    dout, ids, dimages, per_image, patches, columns, ids_image, dout_image, dout_row,
    image_stride, channel_stride, row_stride,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    BLOCK_IDS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (one patch of one image), named or not: the sum of its rows in the order of the ids, or zeros."""
    image = (tl.program_id(0) // patches).to(tl.int64)
    patch = tl.program_id(0) % patches
    ids += image * ids_image
    dout += image * dout_image
    offsets, inside = row_places(1, CHANNELS, PATCH, 1, BLOCK_C, BLOCK_P)
    total = tl.zeros((BLOCK_P * BLOCK_P, BLOCK_C), dtype=tl.float32)
    for first in range(0, per_image, BLOCK_IDS):
        places = first + tl.arange(0, BLOCK_IDS)
        named = tl.load(ids + places, mask=places < per_image, other=-1) == patch
        place = tl.min(tl.where(named, places, per_image))
        while place < per_image:
            total += tl.load(dout + place.to(tl.int64) * dout_row + offsets, mask=inside, other=0.0).to(tl.float32)
            place = tl.min(tl.where(named & (places > place), places, per_image))
    channel = tl.arange(0, BLOCK_C)
    row, column, within = pixel_places(PATCH, BLOCK_P)
    top, left = patch // columns * PATCH, patch % columns * PATCH
    if WIDE:
        channel, top, row = channel.to(tl.int64), top.to(tl.int64), row.to(tl.int64)
    dimages += image * image_stride + top * row_stride + left
    target = dimages + channel[:, None] * channel_stride + (row * row_stride + column)[None, :]
    tile = tl.trans(total.to(dimages.dtype.element_ty))
    tl.store(target, tile, mask=(channel < CHANNELS)[:, None] & within[None, :])


@triton.jit(do_not_specialize=COUNTS)
def loss_forward(
    images, ids, mean, std, prediction, losses, difference, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    NORMALIZE: tl.constexpr, EPS: tl.constexpr, CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (group of patches): loss of each, and where it is wanted prediction minus target."""
    VALUES: tl.constexpr = PATCH * PATCH * CHANNELS
    first = tl.program_id(0) * PATCHES
    target, there = load_pixels(
        images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
        image_stride, channel_stride, row_stride, column_stride,
        CHANNELS, PATCH, PATCHES, BLOCK_C, BLOCK_P, WIDE,
    )  # fmt: skip
    target = target.to(tl.float32)
    if NORMALIZE:
        target = standardized(target, there, VALUES, EPS, PATCHES)
    target = to_points(target, PATCHES, BLOCK_C, BLOCK_P)
    offsets, inside = row_places(total - first, CHANNELS, PATCH, PATCHES, BLOCK_C, BLOCK_P)
    start = first.to(tl.int64) * VALUES
    error = tl.load(prediction + start + offsets, mask=inside, other=0.0).to(tl.float32) - target
    if difference is not None:
        tl.store(difference + start + offsets, error.to(difference.dtype.element_ty), mask=inside)
    squares = tl.reshape(tl.where(inside, error * error, 0.0), (PATCHES, BLOCK_P * BLOCK_P * BLOCK_C))
    number = first + tl.arange(0, PATCHES)
    tl.store(losses + number, tl.sum(squares, axis=1) * (1 / VALUES), mask=number < total)


@triton.jit
def standardized(tile, there, VALUES: tl.constexpr, EPS: tl.constexpr, PATCHES: tl.constexpr):
    """Each patch of a tile (lines, pixels) minus its mean, over the root of its unbiased variance + EPS."""
    SIZE: tl.constexpr = tile.numel // PATCHES
    values, there = tl.reshape(tile, (PATCHES, SIZE)), tl.reshape(there, (PATCHES, SIZE))
    centred = values - (tl.sum(values, axis=1) * (1 / VALUES))[:, None]
    # The mean was rounded, which shows where a patch is nearly constant; what is left of it is small and exact enough.
    left = tl.sum(tl.where(there, centred, 0.0), axis=1) * (1 / VALUES)
    centred = tl.where(there, centred - left[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1 / (VALUES - 1))
    return tl.reshape(centred * tl.div_rn(1.0, tl.sqrt_rn(variance + EPS))[:, None], tile.shape)


@triton.jit(do_not_specialize=["total", "per_image", "upstream_image", "upstream_patch"])
def loss_backward(
    upstream, difference, dprediction, total, per_image, upstream_image, upstream_patch,
    VALUES: tl.constexpr, PATCHES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (group of patches): difference times twice the patch's upstream gradient over the number of values."""
    first = tl.program_id(0) * PATCHES
    patch, value = tl.arange(0, PATCHES), tl.arange(0, BLOCK)
    number = first + patch
    image = (number // per_image).to(tl.int64)
    upstream += image * upstream_image + (number % per_image).to(tl.int64) * upstream_patch
    factor = tl.load(upstream, mask=number < total, other=0.0) * (2 / VALUES)
    offsets = first.to(tl.int64) * VALUES + (patch * VALUES)[:, None] + value[None, :]
    inside = (number < total)[:, None] & (value < VALUES)[None, :]
    tile = tl.load(difference + offsets, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(dprediction + offsets, tile.to(dprediction.dtype.element_ty), mask=inside)
