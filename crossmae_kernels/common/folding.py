"""LayerNorm's affine folded into the linear layer behind it, in weight space.

``LN(x) W^T + b = x_hat (gamma * W)^T + (b + W beta)``, where ``x_hat`` is the row without its affine. Kernels then only
normalise, and gamma's and beta's gradients come from the weight's, by autograd: no sums over tokens of their own.
"""

from typing import overload

import torch
from torch import Tensor


@overload
def fold_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]: ...
@overload
def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]: ...
def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer that takes ``x_hat``, differentiable, in the dtype of the given weights.

    Under autocast too: master weights are folded as they are, and cast afterwards by whoever multiplies with them.

    Args:
        weight: ``(..., O, I)``.
        bias: ``(..., O)`` or None.
        norm_weight: LayerNorm scale ``(..., I)``; 1 where None.
        norm_bias: LayerNorm shift ``(..., I)``; 0 where None.
    """
    with torch.autocast(weight.device.type, enabled=False):
        if norm_bias is not None:
            # Not a matrix product: its gradients would be rounded where the backward pass runs, or is compiled, under
            # autocast.
            shift = (weight * norm_bias.unsqueeze(-2)).sum(-1)
            bias = shift if bias is None else bias + shift
        if norm_weight is not None:
            weight = weight * norm_weight.unsqueeze(-2)
    return weight, bias
