"""From tensors to launches of the pass behind GELU."""

import torch
from torch import Tensor

from crossmae_kernels.common.gelu import kernels
from crossmae_kernels.common.launch import blocks, on_device_of

# 16 elements for each of 256 threads, as wide loads of two tensors.
BLOCK_M, BLOCK_N, NUM_WARPS = 32, 128, 8


def gelu_backward(dactivated: Tensor, hidden: Tensor, wants_activated: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows ``(R, H)`` -> gradient of ``hidden``, GELU of it if wanted, and the sum ``(H,)`` of that gradient, float32.

    The gradient may have any row stride; ``hidden`` is contiguous.
    """
    rows, width = hidden.shape
    dhidden = torch.empty_like(hidden)
    activated = torch.empty_like(hidden) if wants_activated else None
    row_tiles = blocks(rows, BLOCK_M)
    sums = torch.empty(row_tiles, width, dtype=torch.float32, device=hidden.device)
    if hidden.numel():
        with on_device_of(hidden):
            kernels.gelu_backward[(row_tiles, blocks(width, BLOCK_N))](
                dactivated, hidden, dhidden, activated, sums, dactivated.stride(0), rows,
                WIDTH=width, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=NUM_WARPS,
            )  # fmt: skip
    return dhidden, activated, sums.sum(0)
