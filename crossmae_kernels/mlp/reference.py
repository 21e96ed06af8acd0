"""The MLP in plain PyTorch: the specification."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """See ``crossmae_kernels.mlp``; arguments are assumed to be checked."""
    hidden = F.gelu(linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), fc1_weight, fc1_bias))
    return x + linear(hidden, fc2_weight, fc2_bias)
