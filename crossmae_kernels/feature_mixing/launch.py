"""From tensors to kernel launches: layouts, allocations, grids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.common.launch import blocks, on_device_of, unit_stride
from crossmae_kernels.common.machine import multiprocessors, shared_memory
from crossmae_kernels.common.normalization import launch as normalization
from crossmae_kernels.feature_mixing import kernels
from crossmae_kernels.feature_mixing.config import NUM_WARPS, forward_stages, held, tiles

# Programs per multiprocessor, which share the tokens: more than its registers hold, to even out the ends.
PROGRAMS_PER_MULTIPROCESSOR = 8


def forward(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mixes ``(n, B, K, E)`` in the dtype of the weights and, normalised, means and 1 / standard deviations.

    These are float32 ``(n, B, K)``; means only where the kernel normalises, whose backward pass alone needs them.
    """
    first, mixes = maps[0], weight.shape[0]
    on_chip = normalize and held(mixes, first.shape[2], weight.element_size(), backward=False)
    call = _Call(maps, weight, on_chip)
    out = weight.new_empty(mixes, *first.shape)
    means, rstds = (first.new_empty(*out.shape[:3] if on_chip else (0,), dtype=torch.float32) for _ in range(2))
    if out.numel():
        with on_device_of(first):
            kernels.mixing_forward[call.grid](
                *call.inputs(), out, means, rstds, *call.strides(), *call.counts, mixes, call.width, eps,
                **call.constants(), num_stages=call.forward_stages(),
            )  # fmt: skip
    if normalize and not on_chip:
        rows, rstds = normalization.normalize(out.flatten(0, 2), eps, out.dtype)
        out, rstds = rows.view_as(out), rstds.view(out.shape[:3])
    return out, means, rstds


def backward(
    dout: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    mixes: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    normalize: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the maps, ``(k, B, K, E)``, and of the weights where ``wanted``.

    ``mixes`` are given where LayerNorm's gradient is a pass of its own.
    """
    first = maps[0]
    dmaps = first.new_empty(len(maps), *first.shape) if wanted[0] else None
    if not first.numel():
        return dmaps, torch.zeros_like(weight) if wanted[1] else None
    on_chip = normalize and mixes is None
    if mixes is not None:
        rows = unit_stride(dout).reshape(-1, first.shape[2])
        dout = normalization.normalize_backward(rows, mixes.flatten(0, 2), rstds.flatten(), None, dout.dtype)
        dout = dout.view_as(mixes)
    call, dout = _Call(maps, weight, on_chip), unit_stride(dout)
    programs = call.grid[0] * call.grid[1]
    dweight = first.new_empty(programs, *weight.shape, dtype=torch.float32) if wanted[1] else None
    with on_device_of(first):
        kernels.mixing_backward[call.grid](
            *call.inputs(), means, rstds, dout, dmaps, dweight,
            *call.strides(), *dout.stride()[:3], *call.counts, weight.shape[0], call.width,
            **call.constants(), num_stages=1,
        )  # fmt: skip
    return dmaps, None if dweight is None else dweight.sum(0).to(weight.dtype)


class _Call:
    """One call's inputs as the kernels want them; ``on_chip`` where programs hold whole tokens and normalise them."""

    def __init__(self, maps: Sequence[Tensor], weight: Tensor, on_chip: bool) -> None:
        self.maps, self.weight, self.on_chip = _alike(maps), weight.contiguous(), on_chip
        batch, tokens, self.width = maps[0].shape
        self.counts = batch * tokens, tokens
        self.tiles = tiles(weight.shape[0], self.width, weight.element_size())
        shares = 1 if on_chip else self.tiles.panels(self.width)
        wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(weight.device)
        # Programs that share the tokens, and those that share a row.
        self.grid = min(batch * tokens, blocks(wanted, shares)), shares

    def inputs(self) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(self.maps), self.weight

    def strides(self) -> tuple[int, ...]:
        """Of an image and of a row."""
        return self.maps[0].stride()[:2]

    def forward_stages(self) -> int:
        if not self.on_chip:
            return 1
        element_size = self.maps[0].element_size()
        return forward_stages(len(self.maps), self.width, element_size, shared_memory(self.weight.device))

    def constants(self) -> dict[str, Any]:
        bytes_between = [stride * self.maps[0].element_size() for stride in self.strides()]
        return {
            "MAPS": len(self.maps),
            "NORMALIZE": self.on_chip,
            "BLOCK_MIXES": self.tiles.mixes,
            "SLICES": NUM_WARPS,
            "CHANNELS": self.tiles.channels,
            "PANELS": self.tiles.panels(self.width) if self.on_chip else 1,
            "ALIGNED": all(place % 16 == 0 for place in [*(m.data_ptr() for m in self.maps), *bytes_between]),
            "num_warps": NUM_WARPS,
        }


def _alike(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps themselves where all lie in memory alike, with unit stride, as an encoder's do; else copies."""
    strides = {feature_map.stride() for feature_map in maps}
    if len(strides) == 1 and maps[0].stride(-1) == 1:
        return list(maps)
    return [feature_map.contiguous() for feature_map in maps]
