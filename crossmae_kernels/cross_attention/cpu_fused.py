"""16-bit attention on a CPU by PyTorch's: its forward pass, and its backward pass in float32.

PyTorch's own backward pass in 16 bits (2.11 to 2.14) takes 3 to 10 times as long as in float32, including casts.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import Packing, unpacked
from crossmae_kernels.cross_attention.reference import join_heads, split_heads
from crossmae_kernels.runtime.autocast import cast

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cross_attention(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; queries are gathered, and arguments assumed to be checked."""
    out, _ = _Attention.apply(query, key, value, packing, num_heads, scale)
    return out


def _empty_like(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.empty_like(x)


class _Attention(torch.autograd.Function):
    """Gradients are rounded once, into the parts of one tensor if the arguments are packed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        heads = [split_heads(x, num_heads) for x in unpacked(query, key, value, packing)]
        out, log_sum_exp = _forward(*heads, scale=scale)
        return join_heads(out), log_sum_exp

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *packed, ctx.packing, ctx.num_heads, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*packed, *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum_exp = ctx.saved_tensors
        wide = query.float(), cast(key, torch.float32), cast(value, torch.float32)
        heads = [split_heads(x, ctx.num_heads) for x in (dout.float(), *unpacked(*wide, ctx.packing), out.float())]
        found = _backward(*heads, log_sum_exp, 0.0, False, scale=ctx.scale)
        gradients = torch.empty_like(query), _empty_like(key), _empty_like(value)
        for part, gradient in zip(unpacked(*gradients, ctx.packing), found, strict=True):
            split_heads(part, ctx.num_heads).copy_(gradient)
        return *gradients, None, None, None
