"""The gradient of a gather: sum rows by the id they were gathered with, in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.runtime.launch import blocks, on_device_of

# Rows read at a time. With 4 warps each thread then has four 128-bit loads of 16-bit rows in flight.
BLOCK_ROWS = 32
BLOCK_COLUMNS = 128


@triton.jit
def segmented_sum_kernel(
    rows,
    order,
    starts,
    out,
    width,
    row_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """``out[n] = sum of rows[order[i]] over starts[n] <= i < starts[n + 1]``; program (n, block of columns)."""
    segment = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = columns < width
    start = tl.load(starts + segment)
    end = tl.load(starts + segment + 1)
    total = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
    for first in range(start, end, BLOCK_ROWS):
        places = first + tl.arange(0, BLOCK_ROWS)
        picked = tl.load(order + places, mask=places < end, other=0)
        tile = tl.load(
            rows + picked[:, None] * row_stride + columns[None, :],
            mask=(places < end)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(tile.to(tl.float32), axis=0)
    tl.store(out + segment.to(tl.int64) * row_stride + columns, total, mask=inside)


def segmented_sum(rows: Tensor, ids: Tensor, segments: int) -> Tensor:
    """``out[n] = sum of rows[i] over all i with ids[i] == n``, like ``index_add`` on zeros but deterministic.

    The stable sort of the ids is the inverse index: each segment's rows in ascending order. One program then sums
    one segment in float32, so there are no atomics and no host synchronization.

    Args:
        rows: ``(R, D)``, contiguous.
        ids: int64 or int32 ``(R,)``; rows whose id is not in ``[0, segments)`` are ignored.
        segments: N.

    Returns:
        ``(N, D)`` in the dtype of the rows.
    """
    order, starts = segments_of(ids, segments)
    width = rows.shape[1]
    out = torch.empty(segments, width, dtype=rows.dtype, device=rows.device)
    if out.numel():
        with on_device_of(rows):
            segmented_sum_kernel[(segments, blocks(width, BLOCK_COLUMNS))](
                rows, order, starts, out, width, rows.stride(0), BLOCK_ROWS, BLOCK_COLUMNS
            )
    return out


def segments_of(ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Rows in ascending order of their ids ``(R,)``, and where each segment starts among them ``(N + 1,)``.

    A radix sort passes over all rows once per byte of an id: eight passes for int64, while the ids of 196 patches fit
    in one byte.
    """
    dtype = next((dtype for dtype, largest in _NARROW if segments <= largest), torch.int64)
    # Ids out of range stay so: -1 becomes the largest unsigned number.
    ascending, order = ids.clamp(-1, segments).to(dtype).sort(stable=True)
    return order, torch.searchsorted(ascending, torch.arange(segments + 1, device=ids.device, dtype=dtype))


# Dtypes of ids and their largest numbers, the narrowest first.
_NARROW = [(dtype, torch.iinfo(dtype).max) for dtype in (torch.uint8, torch.int16, torch.int32)]
