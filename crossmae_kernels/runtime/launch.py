"""What every launcher does around a kernel: the tensor's device, a layout that kernels read, offsets wide enough."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Largest offset, in elements, that a signed 32-bit integer holds.
LARGEST_NARROW_OFFSET = 2**31 - 1

# Kernels add the offset of a tile in 64 bits and offsets inside of it in 32; no tile has more rows than this.
MOST_TILE_ROWS = 256


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; make that the tensor's own."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension lies densely in memory, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def unit_stride_optional(tensor: Tensor | None) -> Tensor | None:
    """``unit_stride``, of a tensor that may be None."""
    return None if tensor is None else unit_stride(tensor)


def needs_wide_offsets(*tensors: Tensor) -> bool:
    """Whether any element lies further from its tensor's first one than 32 bits can say.

    Kernels add the offset of an image in 64 bits always, so pass one image of each tensor.
    """
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) > LARGEST_NARROW_OFFSET
        for t in tensors
        if t.numel()
    )


def flat_rows(tensor: Tensor) -> Tensor:
    """``(..., D)`` as rows ``(R, D)`` that kernels read: a view if it can be, else a contiguous copy.

    Rows so far apart that 32 bits do not span a tile are copied too.
    """
    width = tensor.shape[-1]
    rows = tensor.reshape(tensor.numel() // max(width, 1), width)
    if rows.stride(0) * MOST_TILE_ROWS > LARGEST_NARROW_OFFSET:
        return rows.contiguous()
    return unit_stride(rows)


def blocks(count: int, block: int) -> int:
    """How many blocks hold ``count``."""
    return -(-count // block)
