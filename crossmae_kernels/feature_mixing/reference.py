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
    """See ``crossmae_kernels.mix_feature_maps``; arguments are taken as checked."""
    mixed = _sums(maps, weight)
    return torch.stack(_normed(mixed, norm_weight, norm_bias, eps)) if normalize else mixed


def normed_mixes(
    maps: Sequence[Tensor], weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float
) -> list[Tensor]:
    """The same, one ``(B, K, E)`` for each decoder block; stacking them would be one more copy in either direction."""
    return _normed(_sums(maps, weight), norm_weight, norm_bias, eps)


def _sums(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    # Maps stacked in front make the mix one (n, k) x (k, B*K*E) product over contiguous rows, and its result
    # already lies as (n, B, K, E); stacked at the back it would be a strided product and a transpose.
    return (weight @ torch.stack(list(maps)).flatten(1)).unflatten(1, maps[0].shape)


def _normed(mixed: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float) -> list[Tensor]:
    # One affine per block: a LayerNorm each, with it, passes over the mixes fewer times than one LayerNorm for all
    # and the affine behind it.
    scales = [None] * len(mixed) if norm_weight is None else norm_weight
    shifts = [None] * len(mixed) if norm_bias is None else norm_bias
    blocks = zip(mixed, scales, shifts, strict=True)
    return [F.layer_norm(mix, mix.shape[-1:], scale, shift, eps) for mix, scale, shift in blocks]
