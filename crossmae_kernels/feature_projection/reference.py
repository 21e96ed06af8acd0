"""Projection of mixed feature maps in plain PyTorch: the specification."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.feature_mixing.reference import Sums, normed_mixes, sums


def project_feature_maps(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    linear: Callable[..., Tensor] = F.linear,
    sums: Sums = sums,
) -> tuple[Tensor, ...]:
    """See ``crossmae_kernels.project_feature_maps``; arguments are assumed to be checked."""
    mixes = normed_mixes(maps, mixing_weight, norm_weight, norm_bias, eps, sums)
    return tuple(linear(mix, weight, bias) for mix, weight, bias in zip(mixes, weights, biases, strict=True))
