"""Attention as fused kernels compute it, in PyTorch's operators: the backward pass multiplies queries and keys again.

FlashAttention (Dao et al., arXiv 2205.14135, section 3.1) saves the log-sum-exp of a row's scores instead of its
weights. A weight is then the exponential of the difference of two large numbers, a score that was found again and a
rounded log-sum-exp, and errs by up to ``u |score|`` for each, where a saved weight errs by ``u``. If both products of
queries and keys happen to be rounded alike, the largest weights err less: NumPy's library rounds them alike on CPUs
with AVX512, and differently with its code for AVX2, where values' gradients err by 13e-6 for scores up to 400.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Recomputing(TorchFunctionMode):
    """Within it, ``F.scaled_dot_product_attention`` in float32 with no more than a scale finds its scores again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= {"scale"}:
            wide = all(x.dtype == torch.float32 for x in args)
            if wide and not torch.is_autocast_enabled(args[0].device.type):
                return recomputed_attention(*args, **kwargs)
        return func(*args, **kwargs)


def recomputed_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """``(..., queries, width)``, ``(..., keys, width)`` twice -> ``(..., queries, width)``; scale 1 / sqrt(width)."""
    out: Tensor = _Attention.apply(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        scores = query @ key.mT * scale
        out = scores.softmax(-1) @ value
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, out, scores.logsumexp(-1, keepdim=True))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum_exp = ctx.saved_tensors
        weights = (query @ key.mT * ctx.scale - log_sum_exp).exp()
        dscores = weights * (dout @ value.mT - (dout * out).sum(-1, keepdim=True)) * ctx.scale
        return dscores @ key, dscores.mT @ query, weights.mT @ dout, None
