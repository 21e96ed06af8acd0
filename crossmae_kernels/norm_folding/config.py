"""Reasons to refuse a call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import dtypes_of, machine_refusals


def refusals(weights: Sequence[Tensor], others: Sequence[Tensor | None], dtype: torch.dtype) -> list[str]:
    """Every reason why the kernels cannot fold ``others`` into the weights, with results in ``dtype``."""
    return machine_refusals(weights[0].device, *dtypes_of(*weights, *others), dtype)
