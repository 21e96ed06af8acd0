"""The mixing's operators: schemas, fakes, FLOPs, what is saved for the backward pass."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing.config import held
from crossmae_kernels.runtime.flops import Shape
from crossmae_kernels.runtime.operators import Operator


def mix_feature_maps(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> Tensor:
    """See ``crossmae_kernels.mix_feature_maps``, without an affine; arguments are assumed to be checked.

    Maps may have a higher precision than the weights, whose dtype is then that of products and results: under autocast,
    maps are read in their own dtype and rounded on chip.
    """
    return _forward(list(maps), weight, eps, normalize)


def _forward_fake(
    maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    mixes = weight.new_empty(weight.shape[0], *maps[0].shape)
    on_chip = held(weight.shape[0], mixes.shape[3], weight.element_size())
    means, rstds = (
        mixes.new_empty(mixes.shape[:3], dtype=torch.float32) if there else None
        for there in (normalize and on_chip, normalize)
    )
    return mixes, means, rstds


def _forward_flops(maps: Sequence[Shape], weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(weight) * prod(maps[0])


def _backward_fake(
    dmixes: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    mixes: Tensor | None,
    means: Tensor | None,
    rstds: Tensor | None,
    normalize: bool,
    output_mask: list[bool],
) -> tuple[list[Tensor], Tensor | None]:
    return (
        [maps[0].new_empty(maps[0].shape) for _ in maps] if output_mask[0] else [],
        weight.new_empty(weight.shape) if output_mask[1] else None,
    )


def _backward_flops(
    dmixes: Shape,
    maps: Sequence[Shape],
    weight: Shape,
    mixes: Shape | None,
    means: Shape | None,
    rstds: Shape | None,
    normalize: bool,
    output_mask: list[bool],
    **_: Any,
) -> int:
    return sum(output_mask) * _forward_flops(maps, weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, weight, _, ctx.normalize = inputs
    mixes, means, rstds = output
    on_chip = held(weight.shape[0], mixes.shape[3], weight.element_size())
    # The next product saves the mixes anyway.
    saved = mixes if ctx.normalize and not on_chip else None
    ctx.save_for_backward(weight, saved, means, rstds, *maps)


def _gradients(ctx: Any, output_mask: list[bool], dmixes: Tensor) -> tuple[list[Tensor], Tensor]:
    weight, mixes, means, rstds, *maps = ctx.saved_tensors
    return _backward(dmixes, maps, weight, mixes, means, rstds, ctx.normalize, output_mask)


_forward = Operator(
    "mix_feature_maps(Tensor[] maps, Tensor weight, float eps, bool normalize)"
    " -> (Tensor mixes, Tensor means, Tensor rstds)",
    launcher="feature_mixing.kernels:forward",
    fake=_forward_fake,
    flops=_forward_flops,
)
_backward = Operator(
    "mix_feature_maps_backward(Tensor dmixes, Tensor[] maps, Tensor weight, Tensor? mixes, Tensor? means,"
    " Tensor? rstds, bool normalize, bool[2] output_mask) -> (Tensor[] dmaps, Tensor dweight)",
    launcher="feature_mixing.kernels:backward",
    fake=_backward_fake,
    flops=_backward_flops,
)
_forward.differentiable(_save, _gradients, inputs=2)
_backward.not_differentiable("mix_feature_maps: the kernels have no second derivative; impl='reference' has one")
