"""Norm -> linear and linear -> residual in plain PyTorch: the specification."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str | None,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """See ``crossmae_kernels.norm_linear``; arguments are assumed to be checked."""
    out = linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)
    return F.gelu(out) if activation == "gelu" else out


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    residual_ids: Tensor | None,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """See ``crossmae_kernels.linear_residual``; arguments are assumed to be checked."""
    if residual_ids is not None:
        residual = residual[residual_ids]
    return residual + linear(x, weight, bias)
