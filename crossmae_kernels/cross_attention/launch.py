"""From tensors to kernel launches: layouts, allocations, grids."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention import kernels
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
from crossmae_kernels.runtime.device import multiprocessors, shared_memory
from crossmae_kernels.runtime.launch import (
    blocks,
    dot_extent,
    input_precision,
    needs_wide_offsets,
    on_device_of,
    unit_stride,
    unit_stride_optional,
)
from crossmae_kernels.runtime.tuning import enabled, tuned

LOG2_E = math.log2(math.e)

# Programs per multiprocessor that keep it busy; with fewer images the query tiles are shared out among more programs.
PROGRAMS_PER_MULTIPROCESSOR = 8


class _Call:
    """One call's inputs as the kernels want them: unpacked."""

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

    def strides(self) -> tuple[int, ...]:
        """Of q, k and v by image and row, and of the ids by image."""
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
        kernel: Kernel,
        grid: Callable[[AttentionTiles], tuple[int, ...]],
        *arguments: object,
        others: Sequence[Tensor],
        **row_strides: int,
    ) -> None:
        """Launch a kernel; ``others`` are further tensors ``(B, ., D)`` that it addresses."""
        key = self.key
        precision = input_precision(key.dtype)
        constants = {
            "HEADS": self.heads,
            "HEAD_DIM": self.head_width,
            "BLOCK_D": dot_extent(self.head_width),
            "PRECISION": precision,
            "WIDE": needs_wide_offsets(self.query, key, self.value, *others),
            **row_strides,
        }
        function: Any = getattr(kernels, kernel)
        problem = (
            self.queries, self.keys, self.head_width, key.element_size(), shared_memory(key.device), precision
        )  # fmt: skip
        choice = tiles(kernel, *problem)

        def run(choice: AttentionTiles) -> None:
            function[grid(choice)](*arguments, **constants, **choice.constants)

        with on_device_of(key):
            if enabled():
                choice = tuned(
                    f"cross_attention.{kernel}",
                    # Widths, dtype and precision, never the batch; counts as the tile extents that hold them.
                    (
                        self.heads, self.head_width, dot_extent(self.queries), dot_extent(self.keys),
                        str(key.dtype), precision,
                    ),
                    choice,
                    lambda: candidates(kernel, *problem),
                    run,
                    key.device,
                )  # fmt: skip
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
        programs = blocks(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(query.device), call.programs)
        call.launch(
            "short_forward",
            lambda choice: (call.programs, min(blocks(call.queries, choice.block_q), programs)),
            *call.inputs, out, *arguments,
            others=(out,),
        )  # fmt: skip
    else:
        call.launch(
            "looped_forward",
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
    """Gradients of query (or table), key and value, packed as these are, where asked for.

    ``out`` and ``lse`` only for the looped path.
    """
    call = _Call(query, key, value, query_ids, packing, num_heads)
    dout = unit_stride(dout)
    dquery = query.new_empty(call.batch, call.queries, query.shape[-1]) if output_mask[0] else None
    dkey, dvalue = (
        t.new_empty(t.shape) if asked and t is not None else None
        for t, asked in zip((key, value), output_mask[1:], strict=True)
    )
    dq, dk, dv = dquery, dkey, dvalue
    if packing == "qkv":
        dq, dk, dv = parts(dquery, 3)
    elif packing == "kv":
        dk, dv = parts(dkey, 2)
    if call.batch * call.queries * call.width == 0:
        # Nobody asked anything of the keys.
        dkey, dvalue = (None if gradient is None else gradient.zero_() for gradient in (dkey, dvalue))
    else:
        arguments = (
            *call.strides(), dout.stride(0), dout.stride(1), *call.counts(), scale, scale * LOG2_E
        )  # fmt: skip
        gradients = [gradient for gradient in (dq, dk, dv) if gradient is not None]
        dq_row, dkv_row = _row_stride(dq), _row_stride(dv if dk is None else dk)
        if out is None or lse is None:
            call.launch(
                "short_backward",
                lambda _: (call.programs,),
                *call.inputs, dout, dq, dk, dv, *arguments,
                others=(dout, *gradients), DQ_ROW=dq_row, DKV_ROW=dkv_row,
            )  # fmt: skip
        else:
            delta = torch.empty_like(lse)
            if dq is not None or dk is not None:
                call.launch(
                    "looped_backward_query",
                    lambda choice: (call.programs, blocks(call.queries, choice.block_q)),
                    *call.inputs, out, lse, dout, dq, delta, *arguments,
                    others=(out, dout, *gradients), DQ_ROW=dq_row,
                )  # fmt: skip
            if dk is not None or dv is not None:
                call.launch(
                    "looped_backward_key",
                    lambda choice: (call.programs, blocks(call.keys, choice.block_k)),
                    *call.inputs, lse, delta, dout, dk, dv, *arguments,
                    others=(dout, *gradients), DKV_ROW=dkv_row,
                )  # fmt: skip
    if dquery is not None and query_ids is not None:
        dquery = segmented_sum(dquery.flatten(0, 1), query_ids.flatten(), len(query))
    return dquery, dkey, dvalue


def _row_stride(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient.stride(1)
