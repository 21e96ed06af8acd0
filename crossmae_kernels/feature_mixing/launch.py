"""From tensors to kernel launches: layouts, allocations, grids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing import kernels
from crossmae_kernels.feature_mixing.config import (
    ALL_REGISTERS,
    NUM_WARPS,
    MixingTiles,
    backward_stages,
    backward_tiles,
    forward_registers,
    forward_stages,
    forward_tiles,
    held,
    holds_upstream_gradients,
)
from crossmae_kernels.primitives import normalization
from crossmae_kernels.runtime.device import multiprocessors, shared_memory
from crossmae_kernels.runtime.launch import alike, blocks, input_precision, on_device_of, unit_stride

# Programs per multiprocessor, which share the tokens: more than its registers hold, to even out the ends.
PROGRAMS_PER_MULTIPROCESSOR = 8


def forward(
    maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mixes ``(n, B, K, E)`` in the dtype of the weights and, normalised, means and 1 / standard deviations.

    These are float32 ``(n, B, K)``; means only where the kernel normalises, whose backward pass alone needs them.
    """
    first, mixes, width = maps[0], weight.shape[0], maps[0].shape[2]
    on_chip = normalize and held(mixes, width, weight.element_size())
    call = _Call(maps, weight, forward_tiles(mixes, width, weight.element_size()), on_chip)
    out = weight.new_empty(mixes, *first.shape)
    means, rstds = (first.new_empty(out.shape[:3], dtype=torch.float32) if on_chip else None for _ in range(2))
    stages = 1
    if on_chip:
        stages = forward_stages(len(maps), width, first.element_size(), shared_memory(first.device))
    if out.numel():
        with on_device_of(first):
            kernels.mixing_forward[call.grid](
                *call.inputs(), out, means, rstds, *call.strides(), *call.counts, mixes, width, eps,
                NORMALIZE=on_chip, PANELS=call.panels // call.grid[1], **call.constants(),
                num_stages=stages, maxnreg=forward_registers(weight.element_size()),
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
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the maps, ``(k, B, K, E)``, and of the weights where asked for.

    Normalised ``mixes`` are given where LayerNorm's gradient is a pass of its own.
    """
    first, width = maps[0], maps[0].shape[2]
    dmaps = first.new_empty(len(maps), *first.shape) if output_mask[0] else None
    if not first.numel():
        return dmaps, torch.zeros_like(weight) if output_mask[1] else None
    on_chip = normalize and mixes is None
    if mixes is not None:
        rows = unit_stride(dout).reshape(-1, width)
        dout = normalization.normalize_backward(rows, mixes.flatten(0, 2), rstds.flatten(), None, dout.dtype)
        dout = dout.view_as(mixes)
    dout, count = unit_stride(dout), weight.shape[0]
    call = _Call(maps, weight, backward_tiles(count, width, weight.element_size(), on_chip), on_chip)
    dweight = None
    if output_mask[1]:
        dweight = first.new_empty(call.grid[0] * call.grid[1], *weight.shape, dtype=torch.float32)
    options = {**call.constants(), "maxnreg": ALL_REGISTERS}
    gradients = dout, dmaps, dweight, *call.strides(), *dout.stride()[:3], *call.counts, count, width
    with on_device_of(first):
        if on_chip:
            kernels.mixing_backward[call.grid](
                *call.inputs(), means, rstds, *gradients, PANELS=call.panels,
                HOLD_DOUT=holds_upstream_gradients(count, width, weight.element_size()),
                num_stages=backward_stages(weight.element_size()), **options,
            )  # fmt: skip
        else:
            kernels.sums_backward[call.grid](*call.inputs(), *gradients, num_stages=1, **options)
    return dmaps, None if dweight is None else dweight.sum(0).to(weight.dtype)


class _Call:
    """What kernels ask of one call; ``whole_tokens`` where a program works on all panels of its tokens."""

    def __init__(self, maps: Sequence[Tensor], weight: Tensor, choice: MixingTiles, whole_tokens: bool) -> None:
        self.maps, self.weight, self.tiles = alike(maps), weight.contiguous(), choice
        batch, tokens, width = maps[0].shape
        self.counts = batch * tokens, tokens
        self.panels = choice.panels(width)
        shares = 1 if whole_tokens else self.panels
        programs = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(weight.device)
        # Programs that share the tokens, and those that share a row.
        self.grid = min(batch * tokens, blocks(programs, shares)), shares

    def inputs(self) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.maps, self.weight

    def strides(self) -> tuple[int, ...]:
        """Of an image and of a row."""
        return self.maps[0].stride()[:2]

    def constants(self) -> dict[str, Any]:
        bytes_between = [stride * self.maps[0].element_size() for stride in self.strides()]
        return {
            "MAPS": len(self.maps),
            **self.tiles.constants,
            "SLICES": NUM_WARPS,
            "ALIGNED": all(place % 16 == 0 for place in [*(m.data_ptr() for m in self.maps), *bytes_between]),
            "PRECISION": input_precision(self.weight.dtype),
            "num_warps": NUM_WARPS,
        }
