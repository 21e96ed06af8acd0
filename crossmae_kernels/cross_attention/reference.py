"""Cross-attention in plain PyTorch: the specification."""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, flop_formula

# PyTorch's attention on a CPU works through blocks of keys; with so few of them the definition itself is faster, by
# 1.3 to 2 times forward and backward (49 x 50 and 147 x 50 with 16 heads of 32, 17 x 17 with 3). At 197 it is not.
FEW_KEYS = 128


def cross_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, query_ids: Tensor | None, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; arguments are taken as checked."""
    if query_ids is not None:
        query = query[query_ids]
    q, k, v = (split_heads(x, num_heads) for x in (query, key, value))
    if query.device.type == "cpu" and query.dtype == torch.float32 and key.shape[1] <= FEW_KEYS:
        out = (q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, T, D)`` -> a view ``(B, heads, T, D / heads)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


# PyTorch, up to 2.14 at least, counts nothing of its own attention on a CPU. The formulas are those of the definition,
# which serves short calls, so that a count does not depend on the number of keys.


@flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _forward_flops(query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    return 4 * prod(query) * key[-2]


@flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _backward_flops(dout: Shape, query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    return 8 * prod(query) * key[-2]
