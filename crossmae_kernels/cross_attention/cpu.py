"""Attention in 16 bits on a CPU, for training: PyTorch's forward pass, and its backward pass in float32.

PyTorch's own backward pass in 16 bits (2.11 to 2.14) costs 4 to 10 times its own in float32, casts included: on one core
with AMX 20 to 29 ms for 49 x 50 with 16 heads of 32, batch 8, against 4 to 5, and 65 against 27 for 197 x 197. At 785
keys both cost the same. Scores multiplied in 16 bits, with the definition's matmul and softmax, are as fast at 49 x 50
and a tenth faster at 197 x 197; but they round each score, keep all of them for the backward pass, and need a CPU that
multiplies 16 bits.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import Packing, unpacked
from crossmae_kernels.cross_attention.reference import join_heads, split_heads

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def serves(packed: tuple[Tensor | None, ...], dtype: torch.dtype) -> bool:
    """Whether a call that computes in ``dtype`` is one of these: without a gradient there is nothing to gain."""
    tensors = [x for x in packed if x is not None]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    whole = all(x.shape[0] > 0 and x.shape[1] > 0 for x in tensors)
    return tensors[0].device.type == "cpu" and dtype.itemsize == 2 and trained and whole


def cross_attention(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; queries are gathered, and arguments taken as checked."""
    out, _ = _Attention.apply(query, key, value, packing, num_heads, scale)
    return out


class _Attention(torch.autograd.Function):
    """Gradients are rounded once, into the parts of one tensor where the arguments lie in one."""

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
        *packed, out, log_sum_exp = ctx.saved_tensors
        wide = [None if x is None else x.float() for x in packed]
        heads = [split_heads(x, ctx.num_heads) for x in (dout.float(), *unpacked(*wide, ctx.packing), out.float())]
        found = _backward(*heads, log_sum_exp, 0.0, False, scale=ctx.scale)
        gradients = [None if x is None else torch.empty_like(x) for x in packed]
        for part, gradient in zip(unpacked(*gradients, ctx.packing), found, strict=True):
            split_heads(part, ctx.num_heads).copy_(gradient)
        return *gradients, None, None, None
