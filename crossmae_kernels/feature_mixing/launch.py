"""From tensors to kernel launches: layouts, allocations, grids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.common.launch import on_device_of, unit_stride
from crossmae_kernels.common.machine import multiprocessors
from crossmae_kernels.feature_mixing import kernels
from crossmae_kernels.feature_mixing.config import tiles

# Programs per multiprocessor, which share the tokens: as many as its registers hold.
PROGRAMS_PER_MULTIPROCESSOR = 4


def forward(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """Mixes ``(n, B, K, E)`` in the dtype of the weights and, normalised, their statistics ``(B, K, 2, n)``."""
    call = _Call(maps, weight, normalize)
    first = call.maps[0]
    out = weight.new_empty(len(weight), *first.shape)
    statistics = first.new_empty((*first.shape[:2], 2, len(weight)) if normalize else (0,), dtype=torch.float32)
    if out.numel():
        with on_device_of(first):
            kernels.mixing_forward[call.grid](
                *call.inputs(), out, statistics,
                *first.stride()[:2], *call.counts, len(weight), call.width, eps,
                **call.constants(),
            )  # fmt: skip
    return out, statistics


def backward(
    dout: Tensor, maps: Sequence[Tensor], weight: Tensor, statistics: Tensor, normalize: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the maps, ``(k, B, K, E)``, and of the weights where ``wanted``."""
    call, dout = _Call(maps, weight, normalize), unit_stride(dout)
    first = call.maps[0]
    dmaps = first.new_empty(len(maps), *first.shape) if wanted[0] else None
    if not first.numel():
        return dmaps, torch.zeros_like(weight) if wanted[1] else None
    programs = call.grid[0] * call.grid[1]
    dweight = first.new_empty(programs, *weight.shape, dtype=torch.float32) if wanted[1] else None
    with on_device_of(first):
        kernels.mixing_backward[call.grid](
            *call.inputs(), statistics, dout, dmaps, dweight,
            *first.stride()[:2], *dout.stride()[:3], *call.counts, len(weight), call.width,
            KEEP=normalize and call.tiles.keep, **call.constants(),
        )  # fmt: skip
    return dmaps, None if dweight is None else dweight.sum(0).to(weight.dtype)


class _Call:
    """One call's inputs as the kernels want them."""

    def __init__(self, maps: Sequence[Tensor], weight: Tensor, normalize: bool) -> None:
        self.maps, self.weight, self.normalize = _alike(maps), weight.contiguous(), normalize
        batch, tokens, self.width = maps[0].shape
        self.counts = batch * tokens, tokens
        self.tiles = tiles(len(weight), self.width, weight.element_size())

    @property
    def panels(self) -> int:
        """Panels of a row."""
        return -(-self.width // self.tiles.panel)

    @property
    def grid(self) -> tuple[int, int]:
        """Programs that share the tokens, and those that share a row."""
        shares = 1 if self.normalize else self.panels
        wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(self.weight.device)
        return min(self.counts[0], -(-wanted // shares)), shares

    def inputs(self) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(self.maps), self.weight

    def constants(self) -> dict[str, Any]:
        first = self.maps[0]
        strides = [stride * first.element_size() for stride in first.stride()[:2]]
        return {
            "MAPS": len(self.maps),
            "NORMALIZE": self.normalize,
            "BLOCK_MIXES": self.tiles.mixes,
            "SLICES": self.tiles.num_warps,
            "CHANNELS": self.tiles.channels,
            "PANELS": self.panels if self.normalize else 1,
            "ALIGNED": all(place % 16 == 0 for place in [*(m.data_ptr() for m in self.maps), *strides]),
            "num_warps": self.tiles.num_warps,
            "num_stages": self.tiles.num_stages,
        }


def _alike(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps themselves where all lie in memory alike, with unit stride, as an encoder's do; else copies."""
    strides = {feature_map.stride() for feature_map in maps}
    if len(strides) == 1 and maps[0].stride(-1) == 1:
        return list(maps)
    return [feature_map.contiguous() for feature_map in maps]
