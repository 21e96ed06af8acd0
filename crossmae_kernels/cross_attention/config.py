"""Tile sizes of the cross-attention kernels: an analytic rule."""

from dataclasses import dataclass
from typing import Literal

# Wider heads would not leave room for the tiles of a backward pass.
WIDEST_HEAD = 128

Kernel = Literal["short_forward", "short_backward", "looped_forward", "looped_backward_query", "looped_backward_key"]


@dataclass(frozen=True)
class Tiles:
    """Configuration of one kernel: queries and keys per tile, warps per program, depth of software pipelines."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


def padded(count: int) -> int:
    """The tile extent that holds ``count``: a power of two, at least 16 as matrix instructions ask."""
    return max(16, 1 << (count - 1).bit_length())


def fits_on_chip(keys: int, head_width: int, element_size: int) -> bool:
    """Whether a program can hold all keys and values of a head, and their gradients, in registers.

    In 16 bits that is so for 128 keys of up to 64 channels and for 64 keys of 128; in 32 bits for half as many.
    """
    return keys <= min(256, 16 * 1024 // padded(head_width)) // element_size


def log_sum_exp_shape(
    batch: int, num_heads: int, queries: int, keys: int, head_width: int, element_size: int
) -> tuple[int, ...]:
    """What the forward pass keeps besides its output: nothing, where the backward pass finds it again on chip."""
    return (0,) if fits_on_chip(keys, head_width, element_size) else (batch, num_heads, queries)


def tiles(
    kernel: Kernel,
    queries: int,
    keys: int,
    head_width: int,
    element_size: int,
    shared_memory: int,
    precision: str,
) -> Tiles:
    """The analytic choice for ``queries`` x ``keys`` and heads of ``head_width``, on a device with so much memory.

    The numbers keep every kernel in registers on all architectures from 8.0 on, as the audit shows: what a thread
    holds grows with tile x head width / warps, and float32 multiplies outside of the tensor cores, where each
    thread needs more of its operands at a time. As TF32 it needs fewer, and with 8 warps the assembler spills some to
    let another program run beside.
    """
    width, block_k = padded(head_width), padded(keys)
    wide = element_size == 4
    if kernel == "short_forward":
        return Tiles(min(32 if wide else 64, padded(queries)), block_k, 8 if wide else 4, 1 if wide else 2)
    if kernel == "short_backward":
        most = 16 if wide else 32
        many = precision == "ieee" if wide else block_k > 64 or width > 64
        warps = 8 if many else 4
        return Tiles(min(most, padded(queries)), block_k, warps, 1 if wide else 2)
    if wide:
        by_kernel = {
            "looped_forward": Tiles(16, 32, 8, 1),
            "looped_backward_query": Tiles(16, 16 if width > 64 else 32, 8, 1),
            "looped_backward_key": Tiles(16, 32, 8, 1),
        }
        return by_kernel[kernel]
    # One tile that stays and two for every stage.
    tile = 64 * width * element_size
    stages = max(2, min(3, (shared_memory - tile) // (2 * tile)))
    small = kernel == "looped_backward_key" or stages < 3
    return Tiles(min(32 if small else 64, padded(queries)), 64, 4 if width <= 64 or stages < 3 else 8, stages)


def candidates(
    kernel: Kernel,
    queries: int,
    keys: int,
    head_width: int,
    element_size: int,
    shared_memory: int,
    precision: str,
) -> list[Tiles]:
    """Neighbours of the analytic choice, for tuning to try."""
    rule = tiles(kernel, queries, keys, head_width, element_size, shared_memory, precision)
    key_blocks = {rule.block_k} if kernel.startswith("short") else {32, 64, 128}
    return [
        Tiles(block_q, block_k, warps, stages)
        for block_q in (16, 32, 64, 128)
        for block_k in sorted(key_blocks)
        for warps in (2, 4, 8)
        for stages in (1, 2, 3)
        if block_q <= 2 * padded(queries)
    ]
