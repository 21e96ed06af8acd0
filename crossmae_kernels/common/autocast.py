"""Autocast for operators: floating-point tensors arrive in whichever dtype autocast is set to.

``torch.library.register_autocast`` fixes one dtype when an operator is registered; this one serves bfloat16 and
float16 alike.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register_autocast(library: torch.library.Library, name: str, op: Callable[..., Any]) -> None:
    """Cast the tensors of ``op``, called ``name`` in ``library``, under autocast on a CPU and on CUDA.

    float64 stays what it is, as PyTorch's own autocast leaves it.
    """
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def cast_and_call(*arguments: Any, _device: str = device) -> Any:
            dtype = torch.get_autocast_dtype(_device)
            with torch.autocast(_device, enabled=False):
                return op(*(_cast(argument, dtype) for argument in arguments))

        library.impl(name, cast_and_call, key)


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype != torch.float64:
        return argument.to(dtype)
    return argument
