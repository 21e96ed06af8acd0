"""Helpers for launchers: current device, supported layouts, tile sizes, 64-bit offsets, precision."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

# The largest offset, in elements, in a signed 32-bit integer.
LARGEST_NARROW_OFFSET = 2**31 - 1

# Kernels add a tile's offset in 64 bits and offsets within it in 32; no tile has more rows than this.
MOST_TILE_ROWS = 256


class Configuration:
    """Base of frozen dataclasses with a kernel's launch parameters: tiles, warps, pipeline stages."""

    @functools.cached_property
    def constants(self) -> dict[str, int]:
        """Fields under the kernels' names for them: in capitals, except Triton's own. None values are left out."""
        of_triton = ("num_warps", "num_stages", "maxnreg")
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name if name in of_triton else name.upper(): value for name, value in values.items()}


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current, as Triton launches on the current device."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def unit_stride_optional(tensor: Tensor | None) -> Tensor | None:
    """``unit_stride`` for a tensor that may be None."""
    return None if tensor is None else unit_stride(tensor)


def alike(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors themselves if all have equal strides, the last one 1, like parameters; else copies."""
    strides = {tensor.stride() for tensor in tensors}
    if len(strides) == 1 and unit_stride(tensors[0]) is tensors[0]:
        return tuple(tensors)
    return tuple(tensor.contiguous() for tensor in tensors)


def needs_wide_offsets(*tensors: Tensor, dims: int = 2) -> bool:
    """Whether any element is further from its image's first one than 32 bits can express.

    An image is the last ``dims`` dimensions; kernels always add an image's offset in 64 bits.
    """
    for tensor in tensors:
        if tensor.is_contiguous() and tensor.numel() <= LARGEST_NARROW_OFFSET:
            continue  # the common case, ten times faster
        offset = 0
        for size, stride in zip(tensor.shape[-dims:], tensor.stride()[-dims:], strict=True):
            offset += (size - 1) * stride
        if offset > LARGEST_NARROW_OFFSET and tensor.numel():
            return True
    return False


def flat_rows(tensor: Tensor) -> Tensor:
    """``(..., D)`` as rows ``(R, D)`` that kernels can read: a view if possible, else a contiguous copy.

    Rows too far apart for 32-bit offsets within a tile are copied too.
    """
    width = tensor.shape[-1]
    rows = tensor if tensor.dim() == 2 else tensor.reshape(tensor.numel() // max(width, 1), width)
    if rows.is_contiguous() and width * MOST_TILE_ROWS <= LARGEST_NARROW_OFFSET:
        return rows  # the common case, ten times faster
    if rows.stride(0) * MOST_TILE_ROWS > LARGEST_NARROW_OFFSET:
        return rows.contiguous()
    return unit_stride(rows)


def power_of_two(count: int) -> int:
    """The tile extent that holds ``count``: a power of two, as tiles are in Triton."""
    return 1 << int(count - 1).bit_length()  # NumPy integers lack bit_length


def dot_extent(count: int) -> int:
    """Like ``power_of_two``, but at least 16, as matrix instructions require."""
    return max(16, power_of_two(count))


def blocks(count: int, block: int) -> int:
    """The number of blocks that cover ``count``."""
    return -(-count // block)


def input_precision(dtype: torch.dtype) -> Literal["ieee", "tf32"]:
    """The ``tl.dot`` precision for operands of ``dtype``; read at every launch, like cuBLAS does.

    ``torch.set_float32_matmul_precision``, ``torch.backends.cuda.matmul.allow_tf32`` and every ``fp32_precision`` set
    the value read here. The two older ones raise if they are read after a newer one was set.
    """
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
