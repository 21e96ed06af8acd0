"""What every launcher does around a kernel: device, layouts that kernels read, tiles, wide offsets, precision."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

# Largest offset, in elements, that a signed 32-bit integer holds.
LARGEST_NARROW_OFFSET = 2**31 - 1

# Kernels add the offset of a tile in 64 bits and offsets inside of it in 32; no tile has more rows than this.
MOST_TILE_ROWS = 256


class Configuration:
    """Base of frozen dataclasses that say how a kernel is launched: its tiles, its warps, its pipeline."""

    @functools.cached_property
    def constants(self) -> dict[str, int]:
        """Fields by the names that kernels have for them: in capitals, except Triton's own. None is left out."""
        of_triton = ("num_warps", "num_stages", "maxnreg")
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name if name in of_triton else name.upper(): value for name, value in values.items()}


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; make that the tensor's own."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def unit_stride_optional(tensor: Tensor | None) -> Tensor | None:
    """``unit_stride``, of a tensor that may be None."""
    return None if tensor is None else unit_stride(tensor)


def alike(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors themselves if all have the same strides, the last one 1, as parameters do; else copies."""
    strides = {tensor.stride() for tensor in tensors}
    if len(strides) == 1 and unit_stride(tensors[0]) is tensors[0]:
        return tuple(tensors)
    return tuple(tensor.contiguous() for tensor in tensors)


def needs_wide_offsets(*tensors: Tensor, dims: int = 2) -> bool:
    """Whether any element lies further from its image's first one than 32 bits can say.

    An image is the last ``dims`` dimensions; kernels add the offset of an image in 64 bits always.
    """
    for tensor in tensors:
        if tensor.is_contiguous() and tensor.numel() <= LARGEST_NARROW_OFFSET:
            continue  # the usual case, recognised in a tenth of the time
        offset = 0
        for size, stride in zip(tensor.shape[-dims:], tensor.stride()[-dims:], strict=True):
            offset += (size - 1) * stride
        if offset > LARGEST_NARROW_OFFSET and tensor.numel():
            return True
    return False


def flat_rows(tensor: Tensor) -> Tensor:
    """``(..., D)`` as rows ``(R, D)`` that kernels read: a view if it can be, else a contiguous copy.

    Rows so far apart that 32 bits do not span a tile are copied too.
    """
    width = tensor.shape[-1]
    rows = tensor if tensor.dim() == 2 else tensor.reshape(tensor.numel() // max(width, 1), width)
    if rows.is_contiguous() and width * MOST_TILE_ROWS <= LARGEST_NARROW_OFFSET:
        return rows  # the usual case, recognised in a tenth of the time
    if rows.stride(0) * MOST_TILE_ROWS > LARGEST_NARROW_OFFSET:
        return rows.contiguous()
    return unit_stride(rows)


def power_of_two(count: int) -> int:
    """The tile extent that holds ``count``: a power of two, as tiles are in Triton."""
    return 1 << int(count - 1).bit_length()  # NumPy's integers have none


def dot_extent(count: int) -> int:
    """The same for what is multiplied, at least 16, as matrix instructions ask."""
    return max(16, power_of_two(count))


def blocks(count: int, block: int) -> int:
    """How many blocks hold ``count``."""
    return -(-count // block)


def input_precision(dtype: torch.dtype) -> Literal["ieee", "tf32"]:
    """What kernels tell ``tl.dot`` for operands of ``dtype``; asked at every launch, as cuBLAS does.

    ``torch.set_float32_matmul_precision``, ``torch.backends.cuda.matmul.allow_tf32`` and every ``fp32_precision``
    set the one that is read here. The two older ones raise when they are read after a newer one was set.
    """
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
