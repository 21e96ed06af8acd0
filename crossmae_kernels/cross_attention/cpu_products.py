"""16-bit attention on a CPU by matrix products of all heads at once, a few images at a time.

Scores, softmax and their gradients are float32, as in a fused kernel; what multiplies values, keys and queries is
rounded to 16 bits where the CPU has such products. Only the arguments are saved, and scores are computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention.config import Packing, width_of
from crossmae_kernels.runtime.autocast import without_autocast
from crossmae_kernels.runtime.device import constant_when_compiled

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
        return _forward(query, key, value, packing, num_heads, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *packed, ctx.packing, ctx.num_heads, ctx.scale = inputs
        ctx.save_for_backward(*packed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        packed = [x for x in ctx.saved_tensors if x is not None]
        gradients = _backward(dout, packed, ctx.packing, ctx.num_heads, ctx.scale)
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
def _backward(dout: Tensor, packed: Sequence[Tensor], packing: Packing, num_heads: int, scale: float) -> list[Tensor]:
    """Gradients are rounded once, into the parts of one tensor if the arguments are packed."""
    gradients = [torch.empty_like(x) for x in packed]
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


def _chunks(query: Tensor, key: Tensor, num_heads: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``tensors``, for a few images at a time."""
    images = max(1, CHUNK_SCORES // (4 * num_heads * query.shape[1] * key.shape[1]))
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
