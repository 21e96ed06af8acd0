"""From tensors to kernel launches: layouts, allocations, grids."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.cross_attention import kernels
from crossmae_kernels.cross_attention.config import (
    Kernel,
    Tiles,
    candidates,
    log_sum_exp_shape,
    padded,
    tiles,
)
from crossmae_kernels.cross_attention.packing import parts, unpacked
from crossmae_kernels.primitives.segmented_sum import segmented_sum
from crossmae_kernels.runtime.device import multiprocessors, shared_memory
from crossmae_kernels.runtime.launch import blocks, needs_wide_offsets, on_device_of, unit_stride, unit_stride_optional
from crossmae_kernels.runtime.precision import input_precision
from crossmae_kernels.runtime.tuning import tuned

LOG2_E = math.log2(math.e)

# Programs per multiprocessor that keep it busy; with fewer images the query tiles are shared out among more programs.
PROGRAMS_PER_MULTIPROCESSOR = 8


class _Call:
    """One call's inputs as the kernels want them: unpacked."""

    def __init__(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, query_ids: Tensor | None, num_heads: int
    ) -> None:
        self.query, self.key, self.value = (unit_stride(t) for t in unpacked(query, key, value))
        self.ids = unit_stride_optional(query_ids)
        self.batch, self.keys, self.width = self.key.shape
        self.queries = query.shape[1] if query_ids is None else query_ids.shape[1]
        self.heads = num_heads
        self.head_width = self.width // num_heads

    @property
    def programs(self) -> int:
        return self.batch * self.heads

    def inputs(self) -> tuple[Tensor | None, ...]:
        return self.query, self.key, self.value, self.ids

    def strides(self) -> tuple[int, ...]:
        """Of q, k and v by image and row, and of the ids by image."""
        query_image = 0 if self.ids is not None else self.query.stride(0)
        ids_image = 0 if self.ids is None else self.ids.stride(0)
        key, value = self.key, self.value
        return (
            query_image, self.query.stride(-2),
            key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            ids_image,
        )  # fmt: skip

    def counts(self) -> tuple[int, int, int]:
        return self.queries, self.keys, len(self.query)

    def launch(
        self,
        kernel: Kernel,
        grid: Callable[[Tiles], tuple[int, ...]],
        *arguments: object,
        others: tuple[Tensor, ...],
        **row_strides: int,
    ) -> None:
        """Launch a kernel; ``others`` are further tensors ``(B, ., D)`` that it addresses."""
        query = self.query if self.ids is not None else self.query[0]
        precision = input_precision(self.key.dtype)
        constants = {
            "HEADS": self.heads,
            "HEAD_DIM": self.head_width,
            "BLOCK_D": padded(self.head_width),
            "PRECISION": precision,
            **row_strides,
            "WIDE": needs_wide_offsets(query, self.key[0], self.value[0], *(other[0] for other in others)),
        }
        function: Any = getattr(kernels, kernel)

        def run(choice: Tiles) -> None:
            sizes = asdict(choice)
            extents = {"BLOCK_Q": sizes.pop("block_q"), "BLOCK_K": sizes.pop("block_k")}
            function[grid(choice)](*arguments, **constants, **extents, **sizes)

        shape = (self.queries, self.keys, self.head_width, self.key.element_size())
        limits = shared_memory(self.key.device), precision
        with on_device_of(self.key):
            best = tuned(
                f"cross_attention.{kernel}",
                # Widths, dtype and precision, never the batch; the number of keys as the tile extent that holds them.
                (self.heads, self.head_width, padded(self.queries), padded(self.keys), str(self.key.dtype), precision),
                tiles(kernel, *shape, *limits),
                lambda: candidates(kernel, *shape, *limits),
                run,
                self.key.device,
            )
            run(best)


def forward(
    query: Tensor, key: Tensor | None, value: Tensor | None, query_ids: Tensor | None, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output ``(B, Q, D)`` and, for the looped path only, the log-sum-exp ``(B, H, Q)`` in base 2, float32."""
    call = _Call(query, key, value, query_ids, num_heads)
    out = query.new_empty(call.batch, call.queries, call.width)
    element_size = query.element_size()
    lse_shape = log_sum_exp_shape(call.batch, num_heads, call.queries, call.keys, call.head_width, element_size)
    lse = query.new_empty(lse_shape, dtype=torch.float32)
    if not out.numel():
        return out, lse
    arguments = (*call.strides(), *call.counts(), scale * LOG2_E)
    if len(lse_shape) == 1:
        wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(query.device)

        def grid(choice: Tiles) -> tuple[int, ...]:
            return call.programs, min(blocks(call.queries, choice.block_q), blocks(wanted, call.programs))

        call.launch("short_forward", grid, *call.inputs(), out, *arguments, others=(out,))
    else:
        call.launch(
            "looped_forward",
            lambda choice: (call.programs, blocks(call.queries, choice.block_q)),
            *call.inputs(), out, lse, *arguments,
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
    num_heads: int,
    scale: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query (or table), key and value, packed as these are, where ``wanted``.

    ``out`` and ``lse`` only for the looped path.
    """
    call = _Call(query, key, value, query_ids, num_heads)
    dout = unit_stride(dout)
    dquery = query.new_empty(call.batch, call.queries, query.shape[-1]) if wanted[0] else None
    dkey, dvalue = (
        t.new_empty(t.shape) if want and t is not None else None
        for t, want in zip((key, value), wanted[1:], strict=True)
    )
    if key is None:
        dq, dk, dv = parts(dquery, 3)
    else:
        dq, (dk, dv) = dquery, parts(dkey, 2) if value is None else (dkey, dvalue)
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
                *call.inputs(), dout, dq, dk, dv, *arguments,
                others=(dout, *gradients), DQ_ROW=dq_row, DKV_ROW=dkv_row,
            )  # fmt: skip
        else:
            delta = torch.empty_like(lse)
            if dq is not None or dk is not None:
                call.launch(
                    "looped_backward_query",
                    lambda choice: (call.programs, blocks(call.queries, choice.block_q)),
                    *call.inputs(), out, lse, dout, dq, delta, *arguments,
                    others=(out, dout, *gradients), DQ_ROW=dq_row,
                )  # fmt: skip
            if dk is not None or dv is not None:
                call.launch(
                    "looped_backward_key",
                    lambda choice: (call.programs, blocks(call.keys, choice.block_k)),
                    *call.inputs(), lse, delta, dout, dk, dv, *arguments,
                    others=(dout, *gradients), DKV_ROW=dkv_row,
                )  # fmt: skip
    if dquery is not None and query_ids is not None:
        dquery = segmented_sum(dquery.flatten(0, 1), query_ids.flatten(), len(query))
    return dquery, dkey, dvalue


def _row_stride(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient.stride(1)
