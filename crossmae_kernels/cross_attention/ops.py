"""Cross-attention's operators: schemas, fakes, FLOPs, what is saved for the backward pass."""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import Packing, log_sum_exp_shape, product_flops, width_of
from crossmae_kernels.runtime.flops import Shape
from crossmae_kernels.runtime.operators import Operator, made


def cross_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float | None,
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; arguments are assumed to be checked and in the compute dtype."""
    if scale is None:
        scale = (width_of(query, packing) // num_heads) ** -0.5
    return _forward(query, key, value, query_ids, packing, num_heads, scale)


def _forward_fake(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    batch, keys, _ = (query if key is None else key).shape
    queries = query.shape[1] if query_ids is None else query_ids.shape[1]
    width = width_of(query, packing)
    lse_shape = log_sum_exp_shape(batch, num_heads, queries, keys, width // num_heads, query.element_size())
    out = query.new_empty(batch, queries, width)
    return out, None if lse_shape is None else query.new_empty(lse_shape, dtype=torch.float32)


def _backward_fake(
    dout: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    out: Tensor | None,
    log_sum_exp: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return tuple(
        None if tensor is None or not asked else query.new_empty(tensor.shape)
        for tensor, asked in zip((query, key, value), output_mask, strict=True)
    )


def _forward_flops(query: Shape, key: Shape | None, *_: Any, out_shape: tuple[Shape, Shape]) -> int:
    """FLOPs of the scores and the weighted averages of values."""
    return 2 * product_flops(out_shape[0], query, key)


def _backward_flops(
    dout: Shape,
    query: Shape,
    key: Shape | None,
    value: Shape | None,
    query_ids: Shape | None,
    out: Shape | None,
    log_sum_exp: Shape | None,
    packing: Packing,
    num_heads: int,
    scale: float,
    output_mask: list[bool],
    **_: Any,
) -> int:
    """FLOPs of the scores' gradient, if queries or keys need it, and of each needed gradient; packed ones count all."""
    of_query, of_key, of_value = output_mask
    if packing == "qkv":
        of_key = of_query
    if packing != "none":
        of_value = of_key
    return ((of_query or of_key) + of_query + of_key + of_value) * product_flops(dout, query, key)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, query_ids, *ctx.options = inputs
    out, log_sum_exp = output
    # With few keys there is no log-sum-exp, as everything is recomputed from the inputs.
    saved = (out, log_sum_exp) if made(log_sum_exp) else (None, None)
    ctx.save_for_backward(query, key, value, query_ids, *saved)


def _gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor, ...]:
    return _backward(dout, *ctx.saved_tensors, *ctx.options, output_mask)


_forward = Operator(
    "cross_attention(Tensor query, Tensor? key, Tensor? value, Tensor? query_ids, str packing, int num_heads,"
    " float scale) -> (Tensor out, Tensor log_sum_exp)",
    launcher="cross_attention.kernels:forward",
    fake=_forward_fake,
    flops=_forward_flops,
)
_backward = Operator(
    "cross_attention_backward(Tensor dout, Tensor query, Tensor? key, Tensor? value, Tensor? query_ids, Tensor? out,"
    " Tensor? log_sum_exp, str packing, int num_heads, float scale, bool[3] output_mask)"
    " -> (Tensor dquery, Tensor dkey, Tensor dvalue)",
    launcher="cross_attention.kernels:backward",
    fake=_backward_fake,
    flops=_backward_flops,
)
_forward.differentiable(_save, _gradients, inputs=3)
_backward.not_differentiable(
    "cross_attention: the kernels have no second derivative; impl='reference' has one (in the math backend of"
    " scaled_dot_product_attention)",
)
