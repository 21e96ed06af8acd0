"""16-bit attention on a CPU by matrix products of all heads at once, a few images at a time.

Scores, softmax and their gradients are float32, as in a fused kernel; what multiplies values, keys and queries is
rounded to 16 bits where the CPU has such products. Only the arguments are saved, and scores are computed again.

In compiled code, a loop over images is an operator of ours, since a compiler would unroll it: MAE's 64 images took it
longer than ten minutes. Where all images are computed at once it sees their products, and compiles what is between.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import Packing, product_flops, width_of
from crossmae_kernels.runtime.autocast import without_autocast
from crossmae_kernels.runtime.device import constant_when_compiled
from crossmae_kernels.runtime.flops import Shape, flop_formula

# Bytes of float32 scores computed at a time. Times of 1 to 4 MiB differ by a tenth; with 8, a decoder's 64 images took
# 1.5 times as long, since neither two cores' caches of 1 MiB nor what they share then holds the scores.
CHUNK_SCORES = 2**21


def cross_attention(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; queries are gathered, and arguments assumed to be checked."""
    scale = (width_of(query, packing) // num_heads) ** -0.5 if scale is None else scale
    return _Attention.apply(query, key, value, packing, num_heads, scale)


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float
    ) -> Tensor:
        keys = next(x for x in (value, key, query) if x is not None)
        function = _forward_operator if _unrolled(query, keys, num_heads) else _forward
        out: Tensor = function(query, key, value, packing, num_heads, scale)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *packed, ctx.packing, ctx.num_heads, ctx.scale = inputs
        ctx.save_for_backward(*packed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        packed = [x for x in ctx.saved_tensors if x is not None]
        function = _backward_operator if _unrolled(dout, packed[-1], ctx.num_heads) else _backward
        gradients = function(dout, packed, ctx.num_heads, ctx.scale)
        return *gradients, *[None] * (6 - len(gradients))


@without_autocast
def _forward(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float
) -> Tensor:
    packed = [x for x in (query, key, value) if x is not None]
    width = width_of(query, packing)
    out = query.new_empty(*query.shape[:2], width)
    dtype = _factor_dtype(query.dtype)
    for *chunk, target in _chunks(query, packed[-1], num_heads, *packed, out):
        q, k, v = (rows.to(dtype) for x in chunk for rows in _rows(x, width, num_heads))
        weights = _weights(q, k, scale)
        _store(_heads(target, width, num_heads)[0], torch.bmm(weights.to(dtype), v))
    return out


@without_autocast
def _backward(dout: Tensor, packed: Sequence[Tensor], num_heads: int, scale: float) -> list[Tensor]:
    """Gradients are rounded once, into the parts of one tensor if the arguments are packed."""
    gradients = [x.new_empty(x.shape) for x in packed]
    width, count, dtype = dout.shape[-1], len(packed), _factor_dtype(dout.dtype)
    for do, *chunk in _chunks(dout, packed[-1], num_heads, dout, *packed, *gradients):
        tensors, targets = chunk[:count], chunk[count:]
        do, q, k, v = (rows.to(dtype) for x in (do, *tensors) for rows in _rows(x, width, num_heads))
        dq, dk, dv = (part for x in targets for part in _heads(x, width, num_heads))
        weights = _weights(q, k, scale)
        _store(dv, torch.bmm(weights.to(dtype).mT, do))
        dweights = torch.bmm(do.float(), v.float().mT)
        dscores = torch._softmax_backward_data(dweights, weights, -1, torch.float32).mul_(scale).to(dtype)
        _store(dk, torch.bmm(dscores.mT, q))
        _store(dq, torch.bmm(dscores, k))
    return gradients


def _unrolled(query: Tensor, key: Tensor, num_heads: int) -> bool:
    """Whether a compiler sees a loop over images."""
    return torch.compiler.is_compiling() and query.shape[0] > _images(query, key, num_heads)


def _images(query: Tensor, key: Tensor, num_heads: int) -> int:
    """How many are computed at a time."""
    return max(1, CHUNK_SCORES // (4 * num_heads * query.shape[1] * key.shape[1]))


def _chunks(query: Tensor, key: Tensor, num_heads: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``tensors``, for a few images at a time."""
    images = _images(query, key, num_heads)
    return zip(*(x.split(images) for x in tensors), strict=True)


def _heads(packed: Tensor, width: int, num_heads: int) -> Tensor:
    """``(B, T, n width)`` -> a view of the parts of each head, ``(n, B, heads, T, width / heads)``."""
    return packed.unflatten(-1, (packed.shape[-1] // width, num_heads, -1)).permute(2, 0, 3, 1, 4)


def _rows(packed: Tensor, width: int, num_heads: int) -> Tensor:
    """The parts of each head, contiguous, ``(n, B heads, T, width / heads)``."""
    return _heads(packed, width, num_heads).contiguous().flatten(1, 2)


def _store(target: Tensor, rows: Tensor) -> None:
    """Round ``(B heads, T, D)`` into a view ``(B, heads, T, D)`` of the result."""
    target.copy_(rows.unflatten(0, target.shape[:2]))


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.softmax(torch.bmm(q.float() * scale, k.float().mT), dim=-1)


@constant_when_compiled
def _factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` if this CPU multiplies it, else float32; PyTorch's own products in float16 took 3 times as long."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return torch.float32
    onednn = torch.ops.mkldnn
    supported = onednn._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else onednn._is_mkldnn_fp16_supported
    return dtype if supported() else torch.float32


def _forward_fake(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float
) -> Tensor:
    return query.new_empty(*query.shape[:2], width_of(query, packing))


def _backward_fake(dout: Tensor, packed: Sequence[Tensor], num_heads: int, scale: float) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in packed]


_library = torch.library.Library("crossmae_kernels", "FRAGMENT")
_library.define(
    "cpu_attention(Tensor query, Tensor? key, Tensor? value, str packing, int num_heads, float scale) -> Tensor"
)
_library.define("cpu_attention_backward(Tensor dout, Tensor[] packed, int num_heads, float scale) -> Tensor[]")
_library.impl("cpu_attention", _forward, "CPU")
_library.impl("cpu_attention_backward", _backward, "CPU")
torch.library.register_fake("crossmae_kernels::cpu_attention", _forward_fake, lib=_library)
torch.library.register_fake("crossmae_kernels::cpu_attention_backward", _backward_fake, lib=_library)
_forward_operator = torch.ops.crossmae_kernels.cpu_attention
_backward_operator = torch.ops.crossmae_kernels.cpu_attention_backward


@flop_formula(_forward_operator)
def _forward_flops(query: Shape, key: Shape | None, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * product_flops(out_shape, query, key)


@flop_formula(_backward_operator)
def _backward_flops(dout: Shape, packed: Sequence[Shape], *_: Any, **__: Any) -> int:
    """Of five products: scores are computed again."""
    return 5 * product_flops(dout, dout, packed[-1])
