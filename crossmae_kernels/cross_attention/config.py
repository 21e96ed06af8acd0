"""The packing of queries, keys and values, reasons to refuse a call, and tile sizes by an analytic rule."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import Limits, machine_refusals
from crossmae_kernels.runtime.flops import Shape
from crossmae_kernels.runtime.launch import Configuration, dot_extent

# Wider heads would not leave room for the tiles of a backward pass.
WIDEST_HEAD = 128

# What is packed into one tensor, as from a joint projection: nothing; keys and values, ``(B, K, 2 D)`` instead of the
# key; or all three, ``(B, T, 3 D)`` instead of the query. The others are then None. Gradients are packed alike: kernels
# write into parts of one tensor, while autograd would concatenate the gradients of slices.
Packing = Literal["none", "kv", "qkv"]

Kernel = Literal["short_forward", "short_backward", "looped_forward", "looped_backward_query", "looped_backward_key"]


@dataclass(frozen=True)
class AttentionTiles(Configuration):
    """Configuration of one kernel: queries and keys per tile, warps per program, depth of software pipelines."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    """Registers per thread, if the assembler would otherwise spill a few to let a second program run."""


def product_flops(out: Shape, query: Shape, key: Shape | None) -> int:
    """FLOPs of every query ``(B, Q, D)`` with every key, or of as many scores with values."""
    keys = (query if key is None else key)[1]
    return 2 * prod(out) * keys


def width_of(query: Tensor, packing: Packing) -> int:
    """The width D; a fully packed query is three times as wide."""
    return query.shape[-1] // 3 if packing == "qkv" else query.shape[-1]


def unpacked(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each ``(B, ., D)``, as views."""
    if packing == "qkv":
        query, key, value = query.chunk(3, dim=-1)
    elif packing == "kv" and key is not None:
        key, value = key.chunk(2, dim=-1)
    assert key is not None
    assert value is not None
    return query, key, value


def parts(gradient: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """The ``count`` parts of a packed gradient, as views; all None if it is not needed."""
    return [None] * count if gradient is None else gradient.chunk(count, dim=-1)


def refusals(device: torch.device, dtypes: Sequence[torch.dtype], head_width: int) -> list[str]:
    """Every reason why the kernels cannot run a call that computes in ``dtypes``."""
    reasons = machine_refusals(device, *dtypes)
    if head_width > WIDEST_HEAD:
        reasons.append(f"kernels support heads of up to {WIDEST_HEAD} channels, but these have {head_width}")
    return reasons


def fits_on_chip(keys: int, head_width: int, element_size: int) -> bool:
    """Whether a program can hold all keys and values of a head, and their gradients, in registers.

    In 16 bits that is so for 128 keys of up to 64 channels and for 64 keys of 128; in 32 bits for half as many.
    """
    return keys <= min(256, 16 * 1024 // dot_extent(head_width)) // element_size


def log_sum_exp_shape(
    batch: int, num_heads: int, queries: int, keys: int, head_width: int, element_size: int
) -> tuple[int, int, int] | None:
    """Shape of the saved log-sum-exp; empty if the backward pass recomputes it on chip."""
    return None if fits_on_chip(keys, head_width, element_size) else (batch, num_heads, queries)


def _short_backward(width: int, block_k: int, wide: bool, precision: str, limits: Limits) -> AttentionTiles:
    if wide:
        exact = width > 64 and precision == "ieee"
        return AttentionTiles(16, block_k, 8, 1, maxnreg=255) if exact else AttentionTiles(16, block_k, 4, 1)
    if width > 64 or block_k > 64:
        return AttentionTiles(16, block_k, 4 if width <= 32 else 8, 1)
    # If instructions need operands in registers, these leave no room for 64 queries.
    return AttentionTiles(64 if limits.multiplies_from_shared_memory else 32, block_k, 4, 1)


@functools.lru_cache(maxsize=1024)
def tiles(
    kernel: Kernel,
    queries: int,
    keys: int,
    head_width: int,
    element_size: int,
    limits: Limits,
    precision: str,
) -> AttentionTiles:
    """The analytic choice for ``queries`` x ``keys`` and heads of ``head_width``, on a device with such ``limits``.

    With these numbers no kernel spills on any architecture from 8.0 on, as the audit shows: a thread's registers grow
    with tile x head width / warps, and float32 products run outside the tensor cores, where each thread needs more
    operands at a time. The short kernels loop over query tiles without a pipeline: one or two steps cover all of a
    decoder's queries, and several programs share a multiprocessor.
    """
    width, block_k = dot_extent(head_width), dot_extent(keys)
    wide = element_size == 4
    if kernel == "short_forward":
        return AttentionTiles(min(32 if wide else 64, dot_extent(queries)), block_k, 8 if wide else 4, 1)
    if kernel == "short_backward":
        choice = _short_backward(width, block_k, wide, precision, limits)
        return replace(choice, block_q=min(choice.block_q, dot_extent(queries)))
    if wide:
        by_kernel = {
            "looped_forward": AttentionTiles(16, 32, 8, 1),
            "looped_backward_query": AttentionTiles(16, 16 if width > 64 else 32, 8, 1),
            "looped_backward_key": AttentionTiles(16, 32, 8, 1),
        }
        return by_kernel[kernel]
    # One tile that stays on chip, and two for every stage.
    tile = 64 * width * element_size
    stages = max(2, min(3, (limits.shared_memory - tile) // (2 * tile)))
    small = kernel == "looped_backward_key" or stages < 3
    block_q = min(32 if small else 64, dot_extent(queries))
    return AttentionTiles(
        block_q, 64, 4 if width <= 64 or (stages < 3 and kernel != "looped_backward_key") else 8, stages
    )


def candidates(
    kernel: Kernel,
    queries: int,
    keys: int,
    head_width: int,
    element_size: int,
    limits: Limits,
    precision: str,
) -> list[AttentionTiles]:
    """Neighbours of the analytic choice, for tuning to try."""
    rule = tiles(kernel, queries, keys, head_width, element_size, limits, precision)
    key_blocks = {rule.block_k} if kernel.startswith("short") else {32, 64, 128}
    return [
        AttentionTiles(block_q, block_k, warps, stages)
        for block_q in (16, 32, 64, 128)
        for block_k in sorted(key_blocks)
        for warps in (2, 4, 8)
        for stages in (1, 2, 3)
        if block_q <= 2 * dot_extent(queries)
    ]
