"""In what precision float32 is multiplied: exactly, or as TF32 by tensor cores where PyTorch is allowed to."""

from typing import Literal

import torch


def input_precision(dtype: torch.dtype) -> Literal["ieee", "tf32"]:
    """What kernels tell ``tl.dot`` for operands of ``dtype``; to be asked in every launch, as cuBLAS asks.

    ``torch.set_float32_matmul_precision``, ``torch.backends.cuda.matmul.allow_tf32`` and every ``fp32_precision`` end
    in the one that is read here. The two older ones raise where they are read after a newer one was set.
    """
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
