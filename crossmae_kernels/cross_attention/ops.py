"""Cross-attention as a PyTorch operator: schema, fake implementation, autograd, autocast, FLOPs.

The operator is defined through ``torch.library.Library`` rather than ``torch.library.custom_op``, which wraps every
call once more to look for aliases that cannot be here. ``impl``'s choice was made before: these operators run the
Triton kernels.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import log_sum_exp_shape
from crossmae_kernels.cross_attention.packing import width_of
from crossmae_kernels.runtime.autocast import register_autocast
from crossmae_kernels.runtime.flops import Shape, flop_formula

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "cross_attention(Tensor query, Tensor? key, Tensor? value, Tensor? query_ids, int num_heads, float scale)"
    " -> (Tensor out, Tensor log_sum_exp)"
)
_library.define(
    "cross_attention_backward(Tensor dout, Tensor query, Tensor? key, Tensor? value, Tensor? query_ids, Tensor? out,"
    " Tensor? log_sum_exp, int num_heads, float scale, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)


def cross_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    num_heads: int,
    query_ids: Tensor | None,
    scale: float | None,
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; arguments, packed or not, are taken as checked."""
    if scale is None:
        scale = (width_of(query, key) // num_heads) ** -0.5
    out, _ = torch.ops.crossmae_kernels.cross_attention(query, key, value, query_ids, num_heads, scale)
    return out


def _forward(
    query: Tensor, key: Tensor | None, value: Tensor | None, query_ids: Tensor | None, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    from crossmae_kernels.cross_attention import launch

    return launch.forward(query, key, value, query_ids, num_heads, scale)


def _forward_fake(
    query: Tensor, key: Tensor | None, value: Tensor | None, query_ids: Tensor | None, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    batch, keys, _ = (query if key is None else key).shape
    queries = query.shape[1] if query_ids is None else query_ids.shape[1]
    width = width_of(query, key)
    lse_shape = log_sum_exp_shape(batch, num_heads, queries, keys, width // num_heads, query.element_size())
    return query.new_empty(batch, queries, width), query.new_empty(lse_shape, dtype=torch.float32)


def _backward(
    dout: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    out: Tensor | None,
    log_sum_exp: Tensor | None,
    num_heads: int,
    scale: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, packed as these are; an empty tensor for each one not wanted."""
    from crossmae_kernels.cross_attention import launch

    gradients = launch.backward(dout, query, key, value, query_ids, out, log_sum_exp, num_heads, scale, wanted)
    dquery, dkey, dvalue = (query.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dquery, dkey, dvalue


def _backward_fake(
    dout: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    out: Tensor | None,
    log_sum_exp: Tensor | None,
    num_heads: int,
    scale: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dquery, dkey, dvalue = (
        query.new_empty(0) if of is None or not want else query.new_empty(of.shape)
        for of, want in zip((query, key, value), wanted, strict=True)
    )
    return dquery, dkey, dvalue


@flop_formula(torch.ops.crossmae_kernels.cross_attention)
def _forward_flops(query: Shape, key: Shape | None, *_: Any, out_shape: tuple[Shape, Shape]) -> int:
    """Scores, and the averages of values."""
    return 2 * _product_flops(out_shape[0], query, key)


@flop_formula(torch.ops.crossmae_kernels.cross_attention_backward)
def _backward_flops(
    dout: Shape,
    query: Shape,
    key: Shape | None,
    value: Shape | None,
    query_ids: Shape | None,
    out: Shape | None,
    log_sum_exp: Shape | None,
    num_heads: int,
    scale: float,
    wanted: list[bool],
    **_: Any,
) -> int:
    """The scores' gradient, for queries and keys, and what is wanted; a packed tensor's is that of all it holds."""
    of_query, of_key, of_value = wanted
    if key is None:
        of_key = of_query
    if value is None:
        of_value = of_key
    return ((of_query or of_key) + of_query + of_key + of_value) * _product_flops(dout, query, key)


def _product_flops(out: Shape, query: Shape, key: Shape | None) -> int:
    """Of every query ``(B, Q, D)`` with every key, or of as many scores with values."""
    keys = (query if key is None else key)[1]
    return 2 * prod(out) * keys


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, query_ids, ctx.num_heads, ctx.scale = inputs
    out, log_sum_exp = output
    ctx.mark_non_differentiable(log_sum_exp)
    ctx.set_materialize_grads(False)
    # The short path finds everything else again from the inputs.
    ctx.looped = log_sum_exp.dim() > 1
    ctx.save_for_backward(query, key, value, query_ids, *((out, log_sum_exp) if ctx.looped else ()))


def _autograd(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    if dout is None or not any(wanted):
        return (None,) * 6
    query, key, value, query_ids, *kept = ctx.saved_tensors
    out, log_sum_exp = kept if ctx.looped else (None, None)
    gradients = torch.ops.crossmae_kernels.cross_attention_backward(
        dout, query, key, value, query_ids, out, log_sum_exp, ctx.num_heads, ctx.scale, wanted
    )
    return (*(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)), None, None, None)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "cross_attention: the Triton kernel has no second derivative; impl='reference' has one (in the math backend"
        " of scaled_dot_product_attention)"
    )


for _device in ("CPU", "CUDA"):
    _library.impl("cross_attention", _forward, _device)
    _library.impl("cross_attention_backward", _backward, _device)
torch.library.register_fake(f"{NAMESPACE}::cross_attention", _forward_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::cross_attention_backward", _backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::cross_attention", _autograd, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::cross_attention_backward", _no_second_derivative, lib=_library)
register_autocast(_library, "cross_attention", torch.ops.crossmae_kernels.cross_attention)
