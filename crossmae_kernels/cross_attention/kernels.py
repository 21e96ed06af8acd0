"""Cross-attention on the GPU: device code, then the launchers.

Up to 128 keys (``config.fits_on_chip``) a whole row of scores fits on chip (the *short* kernels): the softmax is
the plain one, only the inputs are saved for the backward pass, and one kernel computes all gradients, since a program
that holds an image's keys and values for one head also holds all of their gradient. This is the layout of
FlashWindowAttention (arXiv 2501.06480). Beyond that, the *looped* kernels loop over blocks of keys with the online
softmax of FlashAttention 2 (arXiv 2307.08691, algorithms 1 and 2), save a log-sum-exp per row, and split the backward
pass so that no program adds to another's output.

Conventions: a *row* is a query, tiles are ``(queries, keys)`` or ``(rows, head width)``; ``scale_log2`` is
``scale * log2(e)``, so that ``exp2`` gives the softmax. Everything outside a tensor reads as 0. With
``ids`` the queries are rows of a table; a row whose id is outside the table is never read, and its result is NaN. The
images of a gradient are contiguous; its rows are ``DQ_ROW`` or ``DKV_ROW`` elements apart, beside those of another
gradient if the tensors are packed. ``PRECISION`` is that of float32 products (``input_precision``).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.cross_attention.config import (
    AttentionTiles,
    Kernel,
    Packing,
    candidates,
    log_sum_exp_shape,
    parts,
    tiles,
    unpacked,
)
from crossmae_kernels.primitives.segmented_sum import segmented_sum
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.runtime.launch import (
    blocks,
    dot_extent,
    input_precision,
    needs_wide_offsets,
    on_device_of,
    unit_stride,
    unit_stride_optional,
)
from crossmae_kernels.runtime.tuning import run_tuned, tunes_tiles

# Counts that change from batch to batch; they do not specialize the compiled kernel.
COUNTS = ["num_queries", "num_keys", "table_rows"]


@triton.jit
def load_rows(base, rows, row_stride, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of one head as a tile (rows, BLOCK_D)."""
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns[None, :] < HEAD_DIM)
    return tl.load(base + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, row_stride, inside, tile, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a tile (rows, BLOCK_D) where ``load_rows`` would read it."""
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (columns[None, :] < HEAD_DIM)
    tl.store(base + rows[:, None] * row_stride + columns[None, :], tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of the queries or, with ``ids``, rows of the table."""
    if ids is None:
        tile = load_rows(q, rows, q_row, inside, HEAD_DIM, BLOCK_D)
    else:
        picked = tl.load(ids + rows, mask=inside, other=0)
        known = (picked >= 0) & (picked < table_rows)
        tile = load_rows(q, picked.to(rows.dtype), q_row, inside & known, HEAD_DIM, BLOCK_D)
        tile = tl.where(known[:, None], tile, float("nan"))
    return tile


@triton.jit
def scores_of(q, k, keys, num_keys, scale_log2, PRECISION: tl.constexpr):
    """Scaled scores in base 2, (queries, keys); -inf beyond the last key."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    return tl.where((keys < num_keys)[None, :], scores, float("-inf"))


@triton.jit
def indices(first, COUNT: tl.constexpr, WIDE: tl.constexpr):
    """``first + arange``, in 64 bits where offsets within an image need them."""
    index = first + tl.arange(0, COUNT)
    if WIDE:
        index = index.to(tl.int64)
    return index


@triton.jit(do_not_specialize=COUNTS)
def short_forward_kernel(
    q, k, v, ids, out,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, ids_batch,
    num_queries, num_keys, table_rows, scale_log2,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (image and head, part of the query tiles); all keys at once."""
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    column = (tl.program_id(0) % HEADS) * HEAD_DIM
    out_row = HEADS * HEAD_DIM
    q += image * q_batch + column
    k += image * k_batch + column
    v += image * v_batch + column
    out += image * num_queries * out_row + column
    if ids is not None:
        ids += image * ids_batch
    keys = indices(0, BLOCK_K, WIDE)
    k_tile = load_rows(k, keys, k_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    v_tile = load_rows(v, keys, v_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    for first in range(tl.program_id(1) * BLOCK_Q, num_queries, tl.num_programs(1) * BLOCK_Q):
        rows = indices(first, BLOCK_Q, WIDE)
        inside = rows < num_queries
        q_tile = load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM, BLOCK_D)
        scores = scores_of(q_tile, k_tile, keys, num_keys, scale_log2, PRECISION)
        weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        total = tl.sum(weights, axis=1)
        tile = tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION) * (1 / total)[:, None]
        store_rows(out, rows, out_row, inside, tile, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def short_backward_kernel(
    q, k, v, ids, dout, dq, dk, dv,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, ids_batch, dout_batch, dout_row,
    num_queries, num_keys, table_rows, scale, scale_log2,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DQ_ROW: tl.constexpr, DKV_ROW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (image and head). With a whole row of P and dP at hand, ``delta = sum_j P_ij dP_ij`` as it is defined.

    Tiles are (queries, keys), so a row's maximum and sums stay within four threads: 12 shuffles per tile instead of 240
    for tiles (keys, queries). A gradient that is not needed is passed as None.
    """
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    column = (tl.program_id(0) % HEADS) * HEAD_DIM
    q += image * q_batch + column
    k += image * k_batch + column
    v += image * v_batch + column
    dout += image * dout_batch + column
    if ids is not None:
        ids += image * ids_batch
    keys = indices(0, BLOCK_K, WIDE)
    k_tile = load_rows(k, keys, k_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    v_tile = load_rows(v, keys, v_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    dk_tile = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv_tile = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    for first in range(0, num_queries, BLOCK_Q):
        rows = indices(first, BLOCK_Q, WIDE)
        inside = rows < num_queries
        q_tile = load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM, BLOCK_D)
        dout_tile = load_rows(dout, rows, dout_row, inside, HEAD_DIM, BLOCK_D)
        scores = scores_of(q_tile, k_tile, keys, num_keys, scale_log2, PRECISION)
        weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        # One division per row: with one per weight, the code for Blackwell spills.
        weights = weights * (1 / tl.sum(weights, axis=1))[:, None]
        if dv is not None:
            dv_tile = tl.dot(tl.trans(weights.to(dout_tile.dtype)), dout_tile, dv_tile, input_precision=PRECISION)
        if dq is not None or dk is not None:
            dweights = tl.dot(dout_tile, tl.trans(v_tile), input_precision=PRECISION)
            delta = tl.sum(weights * dweights, axis=1)
            dscores = (weights * (dweights - delta[:, None])).to(q_tile.dtype)
            if dk is not None:
                dk_tile = tl.dot(tl.trans(dscores), q_tile, dk_tile, input_precision=PRECISION)
            if dq is not None:
                dq_tile = tl.dot(dscores, k_tile, input_precision=PRECISION) * scale
                dq_image = dq + image * num_queries * DQ_ROW + column
                store_rows(dq_image, rows, DQ_ROW, inside, dq_tile, HEAD_DIM, BLOCK_D)
    if dk is not None:
        dk += image * num_keys * DKV_ROW + column
        store_rows(dk, keys, DKV_ROW, keys < num_keys, dk_tile * scale, HEAD_DIM, BLOCK_D)
    if dv is not None:
        dv += image * num_keys * DKV_ROW + column
        store_rows(dv, keys, DKV_ROW, keys < num_keys, dv_tile, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def looped_forward_kernel(
    q, k, v, ids, out, lse,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, ids_batch,
    num_queries, num_keys, table_rows, scale_log2,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (image and head, query tile), over blocks of keys. ``lse`` (B, H, Q) is in base 2."""
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    column = (tl.program_id(0) % HEADS) * HEAD_DIM
    out_row = HEADS * HEAD_DIM
    q += image * q_batch + column
    k += image * k_batch + column
    v += image * v_batch + column
    out += image * num_queries * out_row + column
    lse += tl.program_id(0).to(tl.int64) * num_queries
    if ids is not None:
        ids += image * ids_batch
    rows = indices(tl.program_id(1) * BLOCK_Q, BLOCK_Q, WIDE)
    inside = rows < num_queries
    q_tile = load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM, BLOCK_D)
    peak = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    tile = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for first in range(0, num_keys, BLOCK_K):
        keys = indices(first, BLOCK_K, WIDE)
        k_tile = load_rows(k, keys, k_row, keys < num_keys, HEAD_DIM, BLOCK_D)
        v_tile = load_rows(v, keys, v_row, keys < num_keys, HEAD_DIM, BLOCK_D)
        scores = scores_of(q_tile, k_tile, keys, num_keys, scale_log2, PRECISION)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, axis=1)
        tile = tl.dot(weights.to(v_tile.dtype), v_tile, tile * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    store_rows(out, rows, out_row, inside, tile * (1 / total)[:, None], HEAD_DIM, BLOCK_D)
    tl.store(lse + rows, peak + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def looped_backward_query_kernel(
    q, k, v, ids, out, lse, dout, dq, delta,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, ids_batch, dout_batch, dout_row,
    num_queries, num_keys, table_rows, scale, scale_log2,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DQ_ROW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (image and head, query tile), over blocks of keys: dQ, and delta (B, H, Q) for the key gradients.

    ``delta_i = sum_j P_ij dP_ij`` equals the dot product of ``out_i`` and ``dout_i``. ``dq`` may be None.
    """
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    column = (tl.program_id(0) % HEADS) * HEAD_DIM
    out_row = HEADS * HEAD_DIM
    dout += image * dout_batch + column
    out += image * num_queries * out_row + column
    lse += tl.program_id(0).to(tl.int64) * num_queries
    delta += tl.program_id(0).to(tl.int64) * num_queries
    rows = indices(tl.program_id(1) * BLOCK_Q, BLOCK_Q, WIDE)
    inside = rows < num_queries
    dout_tile = load_rows(dout, rows, dout_row, inside, HEAD_DIM, BLOCK_D)
    out_tile = load_rows(out, rows, out_row, inside, HEAD_DIM, BLOCK_D)
    row_delta = tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), axis=1)
    tl.store(delta + rows, row_delta, mask=inside)
    if dq is not None:
        q += image * q_batch + column
        k += image * k_batch + column
        v += image * v_batch + column
        dq += image * num_queries * DQ_ROW + column
        if ids is not None:
            ids += image * ids_batch
        row_lse = tl.load(lse + rows, mask=inside, other=0.0)
        q_tile = load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM, BLOCK_D)
        dq_tile = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
        for first in range(0, num_keys, BLOCK_K):
            keys = indices(first, BLOCK_K, WIDE)
            k_tile = load_rows(k, keys, k_row, keys < num_keys, HEAD_DIM, BLOCK_D)
            v_tile = load_rows(v, keys, v_row, keys < num_keys, HEAD_DIM, BLOCK_D)
            weights = tl.exp2(scores_of(q_tile, k_tile, keys, num_keys, scale_log2, PRECISION) - row_lse[:, None])
            dweights = tl.dot(dout_tile, tl.trans(v_tile), input_precision=PRECISION)
            dscores = (weights * (dweights - row_delta[:, None])).to(k_tile.dtype)
            dq_tile = tl.dot(dscores, k_tile, dq_tile, input_precision=PRECISION)
        store_rows(dq, rows, DQ_ROW, inside, dq_tile * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=COUNTS)
def looped_backward_key_kernel(
    q, k, v, ids, lse, delta, dout, dk, dv,
    q_batch, q_row, k_batch, k_row, v_batch, v_row, ids_batch, dout_batch, dout_row,
    num_queries, num_keys, table_rows, scale, scale_log2,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DKV_ROW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (image and head, block of keys), over query tiles: dK and dV, either of which may be None.

    Tiles of weights are (keys, queries) here, so they multiply dout and q without a transpose.
    """
    image = (tl.program_id(0) // HEADS).to(tl.int64)
    column = (tl.program_id(0) % HEADS) * HEAD_DIM
    q += image * q_batch + column
    k += image * k_batch + column
    v += image * v_batch + column
    dout += image * dout_batch + column
    lse += tl.program_id(0).to(tl.int64) * num_queries
    delta += tl.program_id(0).to(tl.int64) * num_queries
    if ids is not None:
        ids += image * ids_batch
    keys = indices(tl.program_id(1) * BLOCK_K, BLOCK_K, WIDE)
    k_tile = load_rows(k, keys, k_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    v_tile = load_rows(v, keys, v_row, keys < num_keys, HEAD_DIM, BLOCK_D)
    dk_tile = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    dv_tile = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    for first in range(0, num_queries, BLOCK_Q):
        rows = indices(first, BLOCK_Q, WIDE)
        inside = rows < num_queries
        q_tile = load_queries(q, ids, rows, q_row, inside, table_rows, HEAD_DIM, BLOCK_D)
        dout_tile = load_rows(dout, rows, dout_row, inside, HEAD_DIM, BLOCK_D)
        row_lse = tl.load(lse + rows, mask=inside, other=0.0)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale_log2
        # Keys beyond the last one need no mask: each only affects its own row of dK and dV, which is not written.
        weights = tl.exp2(scores - row_lse[None, :])
        if dv is not None:
            dv_tile = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_tile, input_precision=PRECISION)
        if dk is not None:
            row_delta = tl.load(delta + rows, mask=inside, other=0.0)
            dweights = tl.dot(v_tile, tl.trans(dout_tile), input_precision=PRECISION)
            dscores = (weights * (dweights - row_delta[None, :])).to(q_tile.dtype)
            dk_tile = tl.dot(dscores, q_tile, dk_tile, input_precision=PRECISION)
    if dk is not None:
        dk += image * num_keys * DKV_ROW + column
        store_rows(dk, keys, DKV_ROW, keys < num_keys, dk_tile * scale, HEAD_DIM, BLOCK_D)
    if dv is not None:
        dv += image * num_keys * DKV_ROW + column
        store_rows(dv, keys, DKV_ROW, keys < num_keys, dv_tile, HEAD_DIM, BLOCK_D)


LOG2_E = math.log2(math.e)

# Programs per multiprocessor that keep it busy; with fewer images, query tiles are split among more programs.
PROGRAMS_PER_MULTIPROCESSOR = 8


class _Call:
    """A call's inputs in the form the kernels need: unpacked."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        query_ids: Tensor | None,
        packing: Packing,
        num_heads: int,
    ) -> None:
        q, k, v = unpacked(query, key, value, packing)
        self.query, self.key, self.value = unit_stride(q), unit_stride(k), unit_stride(v)
        self.ids = unit_stride_optional(query_ids)
        self.batch, self.keys, self.width = k.shape
        self.queries = q.shape[1] if query_ids is None else query_ids.shape[1]
        self.heads = num_heads
        self.head_width = self.width // num_heads
        self.programs = self.batch * num_heads
        self.inputs = (self.query, self.key, self.value, self.ids)
        # A packed tensor spans at least as much as its parts, and is quick to check.
        self.whole = [t for t in (query, key, value) if t is not None]

    def strides(self) -> tuple[int, ...]:
        """Strides of q, k and v by image and row, and of the ids by image."""
        query, key, value, ids = self.inputs
        *query_image, query_row, _ = query.stride()
        key_image, key_row, _ = key.stride()
        value_image, value_row, _ = value.stride()
        return (
            query_image[0] if query_image else 0, query_row,
            key_image, key_row, value_image, value_row,
            0 if ids is None else ids.stride(0),
        )  # fmt: skip

    def counts(self) -> tuple[int, int, int]:
        return self.queries, self.keys, len(self.query)

    def launch(
        self,
        kernel: Any,
        name: Kernel,
        grid: Callable[[AttentionTiles], tuple[int, ...]],
        *arguments: object,
        others: Sequence[Tensor],
        **row_strides: int,
    ) -> None:
        """Launch the kernel of that name; ``others`` are further tensors ``(B, ., D)`` that it accesses."""
        key = self.key
        precision = input_precision(key.dtype)
        constants = {
            "HEADS": self.heads,
            "HEAD_DIM": self.head_width,
            "BLOCK_D": dot_extent(self.head_width),
            "PRECISION": precision,
            "WIDE": needs_wide_offsets(*self.whole, *others),
            **row_strides,
        }
        problem = (self.queries, self.keys, self.head_width, key.element_size(), limits(key.device), precision)
        choice = tiles(name, *problem)

        def run(choice: AttentionTiles) -> None:
            kernel[grid(choice)](*arguments, **constants, **choice.constants)

        with on_device_of(key):
            if tunes_tiles(key):
                run_tuned(
                    f"cross_attention.{name}",
                    # Widths, dtype and precision; counts as the tile sizes that hold them.
                    (
                        self.heads, self.head_width, dot_extent(self.queries), dot_extent(self.keys),
                        key.dtype, precision,
                    ),
                    self.batch,
                    choice,
                    lambda: candidates(name, *problem),
                    run,
                    key.device,
                )  # fmt: skip
            else:
                run(choice)


def forward(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Output ``(B, Q, D)`` and, for the looped path only, the log-sum-exp ``(B, H, Q)`` in base 2, float32."""
    call = _Call(query, key, value, query_ids, packing, num_heads)
    out = query.new_empty(call.batch, call.queries, call.width)
    element_size = query.element_size()
    lse_shape = log_sum_exp_shape(call.batch, num_heads, call.queries, call.keys, call.head_width, element_size)
    lse = None if lse_shape is None else query.new_empty(lse_shape, dtype=torch.float32)
    if not out.numel():
        return out, lse
    arguments = (*call.strides(), *call.counts(), scale * LOG2_E)
    if lse is None:
        programs = blocks(PROGRAMS_PER_MULTIPROCESSOR * limits(query.device).multiprocessors, call.programs)
        call.launch(
            short_forward_kernel, "short_forward",
            lambda choice: (call.programs, min(blocks(call.queries, choice.block_q), programs)),
            *call.inputs, out, *arguments,
            others=(out,),
        )  # fmt: skip
    else:
        call.launch(
            looped_forward_kernel, "looped_forward",
            lambda choice: (call.programs, blocks(call.queries, choice.block_q)),
            *call.inputs, out, lse, *arguments,
            others=(out,),
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    query_ids: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    packing: Packing,
    num_heads: int,
    scale: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The needed gradients of query (or table), key and value, packed as these are.

    ``out`` and ``lse`` are only for the looped path.
    """
    call = _Call(query, key, value, query_ids, packing, num_heads)
    dout = unit_stride(dout)
    dquery = query.new_empty(call.batch, call.queries, query.shape[-1]) if output_mask[0] else None
    dkey, dvalue = (
        t.new_empty(*t.shape) if asked and t is not None else None
        for t, asked in zip((key, value), output_mask[1:], strict=True)
    )
    dq, dk, dv = dquery, dkey, dvalue
    if packing == "qkv":
        dq, dk, dv = parts(dquery, 3)
    elif packing == "kv":
        dk, dv = parts(dkey, 2)
    if call.batch * call.queries * call.width == 0:
        # There are no queries.
        dkey, dvalue = (None if gradient is None else gradient.zero_() for gradient in (dkey, dvalue))
    else:
        arguments = (
            *call.strides(), dout.stride(0), dout.stride(1), *call.counts(), scale, scale * LOG2_E
        )  # fmt: skip
        gradients = [gradient for gradient in (dquery, dkey, dvalue) if gradient is not None]
        dq_row, dkv_row = _row_stride(dq), _row_stride(dv if dk is None else dk)
        if out is None or lse is None:
            call.launch(
                short_backward_kernel, "short_backward",
                lambda _: (call.programs,),
                *call.inputs, dout, dq, dk, dv, *arguments,
                others=(dout, *gradients), DQ_ROW=dq_row, DKV_ROW=dkv_row,
            )  # fmt: skip
        else:
            delta = torch.empty_like(lse)
            if dq is not None or dk is not None:
                call.launch(
                    looped_backward_query_kernel, "looped_backward_query",
                    lambda choice: (call.programs, blocks(call.queries, choice.block_q)),
                    *call.inputs, out, lse, dout, dq, delta, *arguments,
                    others=(out, dout, *gradients), DQ_ROW=dq_row,
                )  # fmt: skip
            if dk is not None or dv is not None:
                call.launch(
                    looped_backward_key_kernel, "looped_backward_key",
                    lambda choice: (call.programs, blocks(call.keys, choice.block_k)),
                    *call.inputs, lse, delta, dout, dk, dv, *arguments,
                    others=(dout, *gradients), DKV_ROW=dkv_row,
                )  # fmt: skip
    if dquery is not None and query_ids is not None:
        dquery = segmented_sum(dquery.flatten(0, 1), query_ids.flatten(), len(query))
    return dquery, dkey, dvalue


def _row_stride(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient.stride(1)
