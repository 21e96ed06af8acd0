"""Patches on the GPU: device code, then the launchers.

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

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.patches.config import VARIANCE_EPS, PatchTiles, candidates, tile_size, tiles
from crossmae_kernels.runtime.launch import (
    blocks,
    needs_wide_offsets,
    on_device_of,
    power_of_two,
    unit_stride,
    unit_stride_optional,
)
from crossmae_kernels.runtime.tuning import run_tuned, tunes_tiles

# Counts, and strides made of them, that change from batch to batch: one compiled kernel serves all of them.
COUNTS = ["total", "per_image", "patches", "columns", "ids_image"]


@triton.jit
def pixel_places(PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Row and column of each pixel of a padded patch, and whether it is inside the patch."""
    pixels = tl.arange(0, BLOCK_H * BLOCK_W)
    rows, columns = pixels // BLOCK_W, pixels % BLOCK_W
    return rows, columns, (rows < PATCH_H) & (columns < PATCH_W)


@triton.jit
def load_pixels(
    images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCHES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Patches ``first`` to ``first + PATCHES`` as a zero-padded tile (lines, pixels), and the mask of pixels."""
    lines = tl.arange(0, PATCHES * BLOCK_C)
    number, channel = first + lines // BLOCK_C, lines % BLOCK_C
    inside = (number < total) & (channel < CHANNELS)
    image = (number // per_image).to(tl.int64)
    picked = tl.load(ids + image * ids_image + number % per_image, mask=inside, other=0)
    known = (picked >= 0) & (picked < patches)
    picked = picked.to(tl.int32)
    row, column, within = pixel_places(PATCH_H, PATCH_W, BLOCK_H, BLOCK_W)
    top, left = picked // columns * PATCH_H, picked % columns * PATCH_W
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
def to_points(tile, PATCHES: tl.constexpr, BLOCK_C: tl.constexpr, PIXELS: tl.constexpr):
    """(lines, pixels) -> (points, channels)."""
    tile = tl.reshape(tile, (PATCHES, BLOCK_C, PIXELS))
    return tl.reshape(tl.permute(tile, (0, 2, 1)), (PATCHES * PIXELS, BLOCK_C))


@triton.jit
def row_places(
    count, CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCHES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile (points, channels) in dense rows, and the mask of the first ``count`` rows."""
    points = tl.arange(0, PATCHES * BLOCK_H * BLOCK_W)
    patch, pixel = points // (BLOCK_H * BLOCK_W), points % (BLOCK_H * BLOCK_W)
    row, column = pixel // BLOCK_W, pixel % BLOCK_W
    channel = tl.arange(0, BLOCK_C)
    offsets = patch * (PATCH_H * PATCH_W * CHANNELS) + (row * PATCH_W + column) * CHANNELS
    inside = (patch < count) & (row < PATCH_H) & (column < PATCH_W)
    return offsets[:, None] + channel[None, :], inside[:, None] & (channel < CHANNELS)[None, :]


@triton.jit(do_not_specialize=COUNTS)
def gather_forward_kernel(
    images, ids, mean, std, out, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCHES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (group of patches)."""
    first = tl.program_id(0) * PATCHES
    tile, _ = load_pixels(
        images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
        image_stride, channel_stride, row_stride, column_stride,
        CHANNELS, PATCH_H, PATCH_W, PATCHES, BLOCK_C, BLOCK_H, BLOCK_W, WIDE,
    )  # fmt: skip
    offsets, inside = row_places(total - first, CHANNELS, PATCH_H, PATCH_W, PATCHES, BLOCK_C, BLOCK_H, BLOCK_W)
    out += first.to(tl.int64) * (PATCH_H * PATCH_W * CHANNELS)
    points = to_points(tile.to(out.dtype.element_ty), PATCHES, BLOCK_C, BLOCK_H * BLOCK_W)
    tl.store(out + offsets, points, mask=inside)


@triton.jit(do_not_specialize=[*COUNTS, "dout_image"])
def gather_backward_kernel(
    dout, ids, dimages, per_image, patches, columns, ids_image, dout_image, dout_row,
    image_stride, channel_stride, row_stride,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, BLOCK_IDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (any patch of an image): the sum of its rows in the order of the ids, or zeros if it has none."""
    image = (tl.program_id(0) // patches).to(tl.int64)
    patch = tl.program_id(0) % patches
    ids += image * ids_image
    dout += image * dout_image
    offsets, inside = row_places(1, CHANNELS, PATCH_H, PATCH_W, 1, BLOCK_C, BLOCK_H, BLOCK_W)
    total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), dtype=tl.float32)
    for first in range(0, per_image, BLOCK_IDS):
        places = first + tl.arange(0, BLOCK_IDS)
        named = tl.load(ids + places, mask=places < per_image, other=-1) == patch
        place = tl.min(tl.where(named, places, per_image))
        while place < per_image:
            total += tl.load(dout + place.to(tl.int64) * dout_row + offsets, mask=inside, other=0.0).to(tl.float32)
            place = tl.min(tl.where(named & (places > place), places, per_image))
    channel = tl.arange(0, BLOCK_C)
    row, column, within = pixel_places(PATCH_H, PATCH_W, BLOCK_H, BLOCK_W)
    top, left = patch // columns * PATCH_H, patch % columns * PATCH_W
    if WIDE:
        channel, top, row = channel.to(tl.int64), top.to(tl.int64), row.to(tl.int64)
    dimages += image * image_stride + top * row_stride + left
    target = dimages + channel[:, None] * channel_stride + (row * row_stride + column)[None, :]
    tile = tl.trans(total.to(dimages.dtype.element_ty))
    tl.store(target, tile, mask=(channel < CHANNELS)[:, None] & within[None, :])


@triton.jit(do_not_specialize=COUNTS)
def loss_forward_kernel(
    images, ids, mean, std, prediction, losses, difference, total, per_image, patches, columns, ids_image,
    image_stride, channel_stride, row_stride, column_stride,
    NORMALIZE: tl.constexpr, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCHES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program (group of patches): the loss of each and, if needed, prediction minus target."""
    VALUES: tl.constexpr = PATCH_H * PATCH_W * CHANNELS
    first = tl.program_id(0) * PATCHES
    target, there = load_pixels(
        images, ids, mean, std, first, total, per_image, patches, columns, ids_image,
        image_stride, channel_stride, row_stride, column_stride,
        CHANNELS, PATCH_H, PATCH_W, PATCHES, BLOCK_C, BLOCK_H, BLOCK_W, WIDE,
    )  # fmt: skip
    target = target.to(tl.float32)
    if NORMALIZE:
        target = standardized(target, there, VALUES, EPS, PATCHES)
    target = to_points(target, PATCHES, BLOCK_C, BLOCK_H * BLOCK_W)
    offsets, inside = row_places(total - first, CHANNELS, PATCH_H, PATCH_W, PATCHES, BLOCK_C, BLOCK_H, BLOCK_W)
    start = first.to(tl.int64) * VALUES
    error = tl.load(prediction + start + offsets, mask=inside, other=0.0).to(tl.float32) - target
    if difference is not None:
        tl.store(difference + start + offsets, error.to(difference.dtype.element_ty), mask=inside)
    squares = tl.reshape(tl.where(inside, error * error, 0.0), (PATCHES, BLOCK_H * BLOCK_W * BLOCK_C))
    number = first + tl.arange(0, PATCHES)
    tl.store(losses + number, tl.sum(squares, axis=1) * (1 / VALUES), mask=number < total)


@triton.jit
def standardized(tile, there, VALUES: tl.constexpr, EPS: tl.constexpr, PATCHES: tl.constexpr):
    """Each patch of a tile (lines, pixels) minus its mean, over the root of its unbiased variance + EPS."""
    SIZE: tl.constexpr = tile.numel // PATCHES
    values, there = tl.reshape(tile, (PATCHES, SIZE)), tl.reshape(there, (PATCHES, SIZE))
    centred = values - (tl.sum(values, axis=1) * (1 / VALUES))[:, None]
    # The mean was rounded, which matters if a patch is nearly constant; its small remainder is exact enough.
    left = tl.sum(tl.where(there, centred, 0.0), axis=1) * (1 / VALUES)
    centred = tl.where(there, centred - left[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1 / (VALUES - 1))
    return tl.reshape(centred * tl.div_rn(1.0, tl.sqrt_rn(variance + EPS))[:, None], tile.shape)


@triton.jit(do_not_specialize=["total", "per_image", "upstream_image", "upstream_patch"])
def loss_backward_kernel(
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


# Ids that a program of the gather's backward pass scans at a time.
BLOCK_IDS = 128


def gather_forward(
    images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Rows ``(B, V, P)`` in the given dtype."""
    out = images.new_empty(*ids.shape, images.shape[1] * height * width, dtype=dtype)
    if out.numel():
        _launch_on_pixels(gather_forward_kernel, "gather_forward", images, ids, mean, std, (height, width), out)
    return out


def gather_backward(
    dout: Tensor, ids: Tensor, image_shape: Sequence[int], height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Gradient of images of the given shape and dtype, each element written once."""
    dimages = dout.new_empty(image_shape, dtype=dtype)
    if dimages.numel():
        dout, ids = unit_stride(dout), unit_stride(ids)
        patches, columns = _grid(dimages, (height, width))
        size = tile_size(dimages.shape[1], (height, width))
        with on_device_of(dout):
            gather_backward_kernel[(len(dimages) * patches,)](
                dout, ids, dimages,
                ids.shape[1], patches, columns, ids.stride(0), dout.stride(0), dout.stride(1), *dimages.stride()[:3],
                **_constants(dimages, (height, width)), BLOCK_IDS=BLOCK_IDS, num_warps=tiles(size).num_warps,
            )  # fmt: skip
    return dimages


def loss_forward(
    prediction: Tensor,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    height: int,
    width: int,
    normalize: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(B, Q)``, float32, and, to save for the backward pass, prediction minus target ``(B, Q, P)``."""
    prediction = prediction.contiguous()
    losses = prediction.new_empty(ids.shape, dtype=torch.float32)
    difference = torch.empty_like(prediction) if save else None
    if losses.numel():
        _launch_on_pixels(
            loss_forward_kernel, "loss_forward", images, ids, mean, std, (height, width), prediction, losses,
            difference, NORMALIZE=normalize, EPS=VARIANCE_EPS,
        )  # fmt: skip
    return losses, difference


def loss_backward(upstream: Tensor, difference: Tensor) -> Tensor:
    """Gradient of the prediction ``(B, Q, P)``, from that of the losses ``(B, Q)``."""
    dprediction = torch.empty_like(difference)
    if dprediction.numel():
        batch, per_image, values = difference.shape
        total, size = batch * per_image, power_of_two(values)

        def run(choice: PatchTiles) -> None:
            loss_backward_kernel[(blocks(total, choice.patches),)](
                upstream, difference, dprediction, total, per_image, *upstream.stride(),
                VALUES=values, BLOCK=size, **choice.constants,
            )  # fmt: skip

        _launch("loss_backward", size, (values,), run, difference)
    return dprediction


def _launch_on_pixels(
    kernel: Any,
    name: str,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    sides: tuple[int, int],
    *others: Tensor | None,
    **constants: object,
) -> None:
    """Launch the named kernel on the given patches, passing ``others`` before its counts."""
    ids = unit_stride(ids)
    mean, std = unit_stride_optional(mean), unit_stride_optional(std)
    total = ids.numel()
    counts = (total, ids.shape[1], *_grid(images, sides), ids.stride(0))
    constants |= _constants(images, sides)

    def run(choice: PatchTiles) -> None:
        kernel[(blocks(total, choice.patches),)](
            images, ids, mean, std, *others, *counts, *images.stride(), **constants, **choice.constants
        )

    channels = images.shape[1]
    _launch(name, tile_size(channels, sides), (channels, *sides), run, images, *others)


def _launch(
    name: str,
    size: int,
    widths: tuple[int, ...],
    run: Callable[[PatchTiles], None],
    on: Tensor,
    *others: Tensor | None,
) -> None:
    choice = tiles(size)
    with on_device_of(on):
        if tunes_tiles(on):
            key = (*widths, on.dtype, *(None if other is None else other.dtype for other in others))
            run_tuned(f"patches.{name}", key, len(on), choice, lambda: candidates(size), run, on.device)
        else:
            run(choice)


def _grid(images: Tensor, sides: tuple[int, int]) -> tuple[int, int]:
    """The number of patches in an image and in a row of it."""
    columns = images.shape[3] // sides[1]
    return images.shape[2] // sides[0] * columns, columns


def _constants(images: Tensor, sides: tuple[int, int]) -> dict[str, object]:
    """A kernel's compile-time constants, from the images it reads or writes."""
    return {
        "CHANNELS": images.shape[1],
        "PATCH_H": sides[0],
        "PATCH_W": sides[1],
        "BLOCK_C": power_of_two(images.shape[1]),
        "BLOCK_H": power_of_two(sides[0]),
        "BLOCK_W": power_of_two(sides[1]),
        "WIDE": needs_wide_offsets(images, dims=3),
    }
