"""From tensors to kernel launches: layouts, allocations, grids."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.patches import kernels
from crossmae_kernels.patches.config import VARIANCE_EPS, PatchTiles, candidates, tile_size, tiles
from crossmae_kernels.runtime.launch import (
    blocks,
    needs_wide_offsets,
    on_device_of,
    power_of_two,
    unit_stride,
    unit_stride_optional,
)
from crossmae_kernels.runtime.tuning import enabled, tuned

# Ids that a program of the gather's backward pass looks through at a time.
BLOCK_IDS = 128


def gather_forward(
    images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None, patch_size: int, dtype: torch.dtype
) -> Tensor:
    """Rows ``(B, V, P)`` in the given dtype."""
    out = images.new_empty(*ids.shape, images.shape[1] * patch_size**2, dtype=dtype)
    if out.numel():
        _launch_on_pixels("gather_forward", images, ids, mean, std, patch_size, out)
    return out


def gather_backward(
    dout: Tensor, ids: Tensor, image_shape: Sequence[int], patch_size: int, dtype: torch.dtype
) -> Tensor:
    """Gradient of images of the given shape and dtype; each of its elements is written once."""
    dimages = dout.new_empty(image_shape, dtype=dtype)
    if dimages.numel():
        dout, ids = unit_stride(dout), unit_stride(ids)
        patches, columns = _grid(dimages, patch_size)
        size = tile_size(dimages.shape[1], patch_size)
        with on_device_of(dout):
            kernels.gather_backward[(len(dimages) * patches,)](
                dout, ids, dimages,
                ids.shape[1], patches, columns, ids.stride(0), dout.stride(0), dout.stride(1), *dimages.stride()[:3],
                **_constants(dimages, patch_size), BLOCK_IDS=BLOCK_IDS, num_warps=tiles(size).num_warps,
            )  # fmt: skip
    return dimages


def loss_forward(
    prediction: Tensor,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch_size: int,
    normalize: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(B, Q)``, float32, and, to save for the backward pass, prediction minus target ``(B, Q, P)``."""
    prediction = prediction.contiguous()
    losses = prediction.new_empty(ids.shape, dtype=torch.float32)
    difference = torch.empty_like(prediction) if save else None
    if losses.numel():
        _launch_on_pixels(
            "loss_forward", images, ids, mean, std, patch_size, prediction, losses, difference,
            NORMALIZE=normalize, EPS=VARIANCE_EPS,
        )  # fmt: skip
    return losses, difference


def loss_backward(upstream: Tensor, difference: Tensor) -> Tensor:
    """Gradient of the prediction ``(B, Q, P)``, from that of the losses ``(B, Q)``."""
    dprediction = torch.empty_like(difference)
    if dprediction.numel():
        batch, per_image, values = difference.shape
        total, size = batch * per_image, power_of_two(values)

        def run(choice: PatchTiles) -> None:
            kernels.loss_backward[(blocks(total, choice.patches),)](
                upstream, difference, dprediction, total, per_image, *upstream.stride(),
                VALUES=values, BLOCK=size, **choice.constants,
            )  # fmt: skip

        _launch("loss_backward", size, (values,), run, difference)
    return dprediction


def _launch_on_pixels(
    kernel: str,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch_size: int,
    *others: Tensor | None,
    **constants: object,
) -> None:
    """Launch a kernel that reads the named patches, and ``others`` in front of its counts."""
    ids = unit_stride(ids)
    mean, std = unit_stride_optional(mean), unit_stride_optional(std)
    total = ids.numel()
    counts = (total, ids.shape[1], *_grid(images, patch_size), ids.stride(0))
    constants |= _constants(images, patch_size)
    function: Any = getattr(kernels, kernel)

    def run(choice: PatchTiles) -> None:
        function[(blocks(total, choice.patches),)](
            images, ids, mean, std, *others, *counts, *images.stride(), **constants, **choice.constants
        )

    channels = images.shape[1]
    _launch(kernel, tile_size(channels, patch_size), (channels, patch_size), run, images, *others)


def _launch(
    kernel: str,
    size: int,
    widths: tuple[int, ...],
    run: Callable[[PatchTiles], None],
    on: Tensor,
    *others: Tensor | None,
) -> None:
    choice = tiles(size)
    with on_device_of(on):
        if enabled():
            key = (*widths, on.dtype, *(None if other is None else other.dtype for other in others))
            choice = tuned(f"patches.{kernel}", key, choice, lambda: candidates(size), run, on.device)
        run(choice)


def _grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Patches of an image, and how many of them lie side by side."""
    columns = images.shape[3] // patch_size
    return images.shape[2] // patch_size * columns, columns


def _constants(images: Tensor, patch_size: int) -> dict[str, object]:
    """What a kernel is compiled for, by the images it reads or writes."""
    return {
        "CHANNELS": images.shape[1],
        "PATCH": patch_size,
        "BLOCK_C": power_of_two(images.shape[1]),
        "BLOCK_P": power_of_two(patch_size),
        "WIDE": needs_wide_offsets(images, dims=3),
    }
