"""Autocast for operators: floating-point tensors arrive in whichever dtype autocast is set to.

``torch.library.register_autocast`` fixes one dtype when an operator is registered; this one serves bfloat16 and
float16 alike.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import constant_when_compiled

Function = TypeVar("Function", bound=Callable[..., Any])


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a type of devices; not on one that it does not know."""
    return _knows(device_type) and torch.is_autocast_enabled(device_type)


@constant_when_compiled
def _knows(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a product with ``weight`` is computed in: autocast's where it is on, else the weight's own."""
    if weight.dtype != torch.float64 and autocasts(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def cast_optional(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in ``dtype``; None stays None."""
    return None if tensor is None else tensor.to(dtype)


def without_autocast(implementation: Function) -> Function:
    """Let an operator's implementation call PyTorch's operators with the dtypes that it gives them.

    Autocast reaches into implementations, in the backward pass too if that runs under it.
    """

    @functools.wraps(implementation)
    def call(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return implementation(first, *others)

    return call  # type: ignore[return-value]


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
