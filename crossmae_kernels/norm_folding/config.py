"""Tile sizes of the fold's kernels, by analytic rules, and why a call is refused."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import dtypes_of, machine_refusals
from crossmae_kernels.runtime.launch import power_of_two

# Forward: 32 elements for each of 128 threads, in rows of which a program has the whole. More would share the norm's
# parameters, read from caches, among more rows, and leave a matrix of 512 x 512 with less than 64 programs.
FORWARD_TILE, WIDEST_BLOCK = 4096, 1024

# Backward: lines of 256 bytes in float32, and sums that are a fiftieth of what else is moved.
BACKWARD_ROWS, BACKWARD_COLUMNS = 64, 64


@functools.cache
def forward_tile(width: int) -> tuple[int, int]:
    """Rows and columns that a program takes at a time."""
    columns = min(power_of_two(width), WIDEST_BLOCK)
    return FORWARD_TILE // columns, columns


def refusals(weights: Sequence[Tensor], others: Sequence[Tensor | None], dtype: torch.dtype) -> list[str]:
    """Every reason why the kernels cannot fold ``others`` into the weights, with results of ``dtype``."""
    return machine_refusals(weights[0].device, *dtypes_of(*weights, *others), dtype)
