"""Weighted sums of feature maps on a CPU in 16 bits, for training: many images are summed a few at a time.

A stack of all maps, in float32 as an encoder's residual is, may be more than a cache holds, and is written and read
several times. Forward and backward pass for ViT-B's 13 maps of 50 tokens and 12 decoder blocks, on two threads of a
Zen 5 with a cache of 32 MiB, bfloat16, ms (medians of three runs):

====== ================ =============
images stacked at once  a few a time
====== ================ =============
8             2.2 + 3.3     2.7 + 4.7
16            5.0 + 6.0     4.8 + 7.9
24             19 + 22       6.9 + 19
32             25 + 33       8.9 + 31
64             70 + 103       27 + 61
====== ================ =============
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing import reference
from crossmae_kernels.runtime.autocast import cast, compute_dtype, without_autocast
from crossmae_kernels.runtime.operators import need_gradient, traced

# Bytes of all maps in float32 up to which one stack is faster.
MOST_STACKED = 2**25

# Bytes of maps in float32 that are stacked at a time. With 1 and 2 MiB, 64 images took up to a third longer.
CHUNK_MAPS = 2**22


def sums(maps: Sequence[Tensor], weight: Tensor) -> Sequence[Tensor]:
    """See ``feature_mixing.reference.sums``."""
    dtype = compute_dtype(weight)
    return _Sums.apply(weight, dtype, *maps) if _serves(maps, weight, dtype) else reference.sums(maps, weight)


SUMS: dict[str, reference.Sums] = {"reference": reference.sums, "cpu": sums}
"""What sums maps, as the implementation that ``dispatch.choose`` returns."""


def _serves(maps: Sequence[Tensor], weight: Tensor, dtype: torch.dtype) -> bool:
    return (
        dtype.itemsize == 2
        and 4 * len(maps) * maps[0].numel() > MOST_STACKED
        and need_gradient(weight, *maps)
        and not traced((weight, *maps))
        and torch.autograd.forward_ad._current_level < 0
        and all(x.is_cpu and x.numel() > 0 for x in (weight, *maps))
    )


class _Sums(torch.autograd.Function):
    """Saves its arguments; the maps are what the encoder's next blocks save too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight, *maps)
        ctx.dtype = dtype
        return _forward(cast(weight, dtype), maps).unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *dmixed: Tensor) -> tuple[Tensor | None, ...]:
        weight, *maps = ctx.saved_tensors
        need_weight, _, *need_maps = ctx.needs_input_grad
        dweight, dmaps = _backward(cast(weight, ctx.dtype), maps, dmixed, need_weight, any(need_maps))
        of_maps = [dmap if need else None for dmap, need in zip(dmaps, need_maps, strict=True)]
        return dweight if need_weight else None, None, *of_maps


@without_autocast
def _forward(weight: Tensor, maps: Sequence[Tensor]) -> Tensor:
    mixed = weight.new_empty(len(weight), *maps[0].shape)
    for target, *some in _chunks(_images(maps), mixed, *maps):
        target.copy_((weight @ _stacked(some, weight.dtype)).view_as(target))
    return mixed


@without_autocast
def _backward(
    weight: Tensor, maps: Sequence[Tensor], dmixed: Sequence[Tensor], need_weight: bool, need_maps: bool
) -> tuple[Tensor, Tensor]:
    """Of the weight in float32, and of the maps in their dtype; what is not needed is not computed."""
    dweight = torch.zeros_like(weight, dtype=torch.float32)
    dmaps = maps[0].new_empty(len(maps), *maps[0].shape)
    transposed = weight.mT.contiguous()  # products with a view take a third longer
    for target, *some in _chunks(_images(maps), dmaps, *dmixed, *maps):
        upstream = _stacked(some[: len(dmixed)], weight.dtype)
        if need_weight:
            dweight += upstream @ _stacked(some[len(dmixed) :], weight.dtype).mT
        if need_maps:
            target.copy_((transposed @ upstream).view_as(target))
    return dweight, dmaps


def _images(maps: Sequence[Tensor]) -> int:
    """How many are computed at a time."""
    return max(1, CHUNK_MAPS // (4 * len(maps) * maps[0][0].numel()))


def _chunks(images: int, target: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """So many images of ``target`` ``(maps, B, K, E)`` and of each tensor ``(B, K, E)`` at a time."""
    return zip(target.split(images, dim=1), *(x.split(images) for x in tensors), strict=True)


def _stacked(maps: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``(maps, B K E)``."""
    return torch.stack(list(maps)).to(dtype).flatten(1)
