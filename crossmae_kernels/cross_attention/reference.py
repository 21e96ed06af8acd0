"""Cross-attention in plain PyTorch: the specification."""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, flop_formula


def cross_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, query_ids: Tensor | None, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; arguments are assumed to be checked."""
    if query_ids is not None:
        query = query[query_ids]
    q, k, v = (split_heads(x, num_heads) for x in (query, key, value))
    return join_heads(F.scaled_dot_product_attention(q, k, v, scale=scale))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(B, T, D)`` -> a view ``(B, heads, T, D / heads)``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """``(B, heads, T, D / heads)`` -> ``(B, T, D)``."""
    return x.transpose(1, 2).flatten(2)


# PyTorch (at least up to 2.14) does not count its own attention on a CPU. These formulas follow the definition.


@flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _forward_flops(query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    return 4 * prod(query) * key[-2]


@flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _backward_flops(dout: Shape, query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    return 8 * prod(query) * key[-2]
