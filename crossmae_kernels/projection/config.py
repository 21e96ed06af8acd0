"""Which form serves a projection: an analytic rule, and why a call may be refused."""

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import dtypes_of, machine_refusals, residual_refusals


def form_rule(dtype: torch.dtype, saves_a_pass: bool) -> str:
    """``tiled`` where its epilogue saves a pass over memory, else ``library``.

    A library's product adds a bias by itself, so ``norm_linear`` without an activation gains nothing of ours. GELU
    in a pass of its own reads and writes 4 bytes for each output in 16 bits, and a residual one reads 2 more and
    writes 2 that the epilogue does not. For 50,000 rows of 512 that is 0.05 to 0.1 GB, 15 to 30 us on an H100, where
    the product with 512 x 512 takes 40 to 50 us. float32 is left to the library, which has more than tiles to offer.
    """
    return "tiled" if saves_a_pass and dtype != torch.float32 else "library"


def linear_residual_refusals(residual: Tensor, bias: Tensor | None, compute: torch.dtype) -> list[str]:
    """Every reason why the kernels cannot serve ``linear_residual``; they read the bias as it is."""
    reasons = machine_refusals(residual.device, *dtypes_of(residual, bias), compute)
    return reasons + residual_refusals("residual", residual, compute)
