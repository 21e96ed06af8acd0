"""Mixing of feature maps in plain PyTorch: the specification."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sums(maps: Sequence[Tensor], weight: Tensor) -> Sequence[Tensor]:
    """``sum_j weight[l, j] maps[j]`` for every row l, each ``(B, K, E)``."""
    # With maps stacked first, the mix is one (n, k) x (k, B*K*E) product over contiguous rows, whose result is
    # already laid out as (n, B, K, E); stacked last, it would be a strided product and a transpose.
    return (weight @ torch.stack(list(maps)).flatten(1)).unflatten(1, maps[0].shape).unbind()


Sums = Callable[[Sequence[Tensor], Tensor], Sequence[Tensor]]


def mix_feature_maps(
    maps: Sequence[Tensor],
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normalize: bool,
    sums: Sums = sums,
) -> Tensor:
    """See ``crossmae_kernels.mix_feature_maps``; arguments are assumed to be checked."""
    if normalize:
        return torch.stack(normed_mixes(maps, weight, norm_weight, norm_bias, eps, sums))
    return torch.stack([*sums(maps, weight)])


def normed_mixes(
    maps: Sequence[Tensor],
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    sums: Sums = sums,
) -> list[Tensor]:
    """The same, one ``(B, K, E)`` per decoder block; stacking would add a copy forward and backward."""
    # Every block has its own affine: one LayerNorm per block, with its affine, passes over the mixes fewer times than
    # one LayerNorm for all and a separate affine.
    scales = [None] * len(weight) if norm_weight is None else norm_weight
    shifts = [None] * len(weight) if norm_bias is None else norm_bias
    blocks = zip(sums(maps, weight), scales, shifts, strict=True)
    return [F.layer_norm(mix, mix.shape[-1:], scale, shift, eps) for mix, scale, shift in blocks]
