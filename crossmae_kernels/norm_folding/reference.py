"""The fold in plain PyTorch: the specification."""

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import cast, without_autocast


@without_autocast
def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """See ``crossmae_kernels.fold_norm``; arguments are assumed to be checked."""
    if norm_bias is not None:
        # Not a matrix product, whose gradients would be rounded if the backward pass ran, or were compiled, under
        # autocast.
        shift = (weight * norm_bias.unsqueeze(-2)).sum(-1)
        bias = shift if bias is None else bias + shift
    if norm_weight is not None:
        weight = weight * norm_weight.unsqueeze(-2)
    return weight.to(dtype), cast(bias, dtype)
