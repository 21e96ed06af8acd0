"""An analytic rule for a projection's form, and reasons to refuse a call."""

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import dtypes_of, machine_refusals, residual_refusals


def form_rule(dtype: torch.dtype, saves_a_pass: bool) -> str:
    """``tiled`` if its epilogue saves a pass over memory, else ``library``.

    cuBLAS's product adds a bias itself, so ``norm_linear`` without an activation gains nothing from ours. In 16 bits, a
    separate GELU pass reads and writes 4 bytes per output, and a residual pass reads 2 and writes 2 that the epilogue
    does not. For 50,000 rows of 512 that is 0.05 to 0.1 GB, 15 to 30 us on an H100, where the product with 512 x 512
    takes 40 to 50 us. float32 is left to cuBLAS, which has more than tiles to choose from.
    """
    return "tiled" if saves_a_pass and dtype != torch.float32 else "library"


def linear_residual_refusals(residual: Tensor, bias: Tensor | None, compute: torch.dtype) -> list[str]:
    """Every reason why the kernels cannot run ``linear_residual``; they read the bias without a cast."""
    reasons = machine_refusals(residual.device, *dtypes_of(residual, bias), compute)
    return reasons + residual_refusals("residual", residual, compute)
