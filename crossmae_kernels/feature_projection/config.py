"""Reasons to refuse a call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing import config as mixing
from crossmae_kernels.runtime.device import dtypes_of, mixture_refusals


def refusals(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    compute: torch.dtype,
) -> list[str]:
    """Every reason why the kernels cannot mix the maps or fold ``others`` into the weights."""
    reasons = mixing.refusals(maps, mixing_weight, *dtypes_of(*weights, *others), compute)
    return reasons + mixture_refusals("weights", weights)
