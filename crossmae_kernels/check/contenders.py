"""Other libraries' attention on ``cross_attention``'s problem: gather rows, split heads, attend, join heads."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries, keys and values (B, T, H, head width) -> (B, Q, H, head width).
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# Modules with ``flash_attn_func``; each version is a separate distribution.
VERSIONS = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
# Named as in ``torch.nn.attention.SDPBackend``.
BACKENDS = {
    "math": "MATH",
    "efficient": "EFFICIENT_ATTENTION",
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}


def attentions() -> dict[str, Attention]:
    """Implementations by name; a call raises if one is not installed or does not accept the arguments."""
    return {
        **{f"sdpa {name}": partial(_sdpa, backend) for name, backend in BACKENDS.items()},
        **{f"FlashAttention {version}": partial(_flash_attention, module) for version, module in VERSIONS.items()},
        "xformers": _xformers,
    }


def attend(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, num_heads: int, query_ids: Tensor | None = None
) -> Tensor:
    """The arguments of ``crossmae_kernels.cross_attention`` -> its result, by another implementation."""
    rows = query if query_ids is None else query[query_ids]
    query, key, value = (t.unflatten(-1, (num_heads, -1)) for t in (rows, key, value))
    return attention(query, key, value).flatten(2)


def _sdpa(backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # Imports Triton, which must not happen before the interpreter is requested.
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _flash_attention(module: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    flash_attn_func = import_module(module).flash_attn_func
    if query.dtype == torch.float32:
        raise ValueError("supports only float16 and bfloat16")
    found = flash_attn_func(query, key, value)
    # Version 4 and early versions of 3 also return the softmax's log-sum-exp.
    return found[0] if isinstance(found, tuple) else found


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]

    return memory_efficient_attention(query, key, value)
