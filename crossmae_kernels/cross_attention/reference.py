"""Cross-attention in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def cross_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, query_ids: Tensor | None, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; arguments are taken as checked."""
    if query_ids is not None:
        query = query[query_ids]
    out = F.scaled_dot_product_attention(
        split_heads(query, num_heads), split_heads(key, num_heads), split_heads(value, num_heads), scale=scale
    )
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, T, D)`` -> a view ``(B, heads, T, D / heads)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
