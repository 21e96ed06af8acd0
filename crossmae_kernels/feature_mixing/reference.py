"""Mixing of feature maps in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_feature_maps(
    maps: Sequence[Tensor],
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normalize: bool,
) -> Tensor:
    """See ``crossmae_kernels.mix_feature_maps``; arguments are assumed to be checked."""
    mixed = _sums(maps, weight)
    return torch.stack(_normed(mixed, norm_weight, norm_bias, eps)) if normalize else mixed


def normed_mixes(
    maps: Sequence[Tensor], weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float
) -> list[Tensor]:
    """The same, one ``(B, K, E)`` per decoder block; stacking would add a copy forward and backward."""
    return _normed(_sums(maps, weight), norm_weight, norm_bias, eps)


def _sums(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    # With maps stacked first, the mix is one (n, k) x (k, B*K*E) product over contiguous rows, whose result is
    # already laid out as (n, B, K, E); stacked last, it would be a strided product and a transpose.
    return (weight @ torch.stack(list(maps)).flatten(1)).unflatten(1, maps[0].shape)


def _normed(mixed: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float) -> list[Tensor]:
    # Every block has its own affine: one LayerNorm per block, with its affine, passes over the mixes fewer times than
    # one LayerNorm for all and a separate affine.
    scales = [None] * len(mixed) if norm_weight is None else norm_weight
    shifts = [None] * len(mixed) if norm_bias is None else norm_bias
    blocks = zip(mixed, scales, shifts, strict=True)
    return [F.layer_norm(mix, mix.shape[-1:], scale, shift, eps) for mix, scale, shift in blocks]
