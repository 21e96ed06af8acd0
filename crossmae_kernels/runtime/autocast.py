"""Autocast: public ops choose the compute dtype and cast; operators and references then run with autocast off."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import constant_when_compiled

Function = TypeVar("Function", bound=Callable[..., Any])


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a device type; never for an unsupported one."""
    known = device_type in ("cuda", "cpu") or _knows(device_type)  # asking PyTorch takes 2 us
    return known and torch.is_autocast_enabled(device_type)


@constant_when_compiled
def _knows(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of products with ``weight``: autocast's if it is on, else the weight's own."""
    if weight.dtype != torch.float64 and autocasts(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


@overload
def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``tensor.to(dtype)`` without the 1 us that it takes if there is nothing to do; None stays None."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def without_autocast(implementation: Function) -> Function:
    """Turn autocast off in an implementation: PyTorch's operators then compute in their arguments' dtypes."""

    @functools.wraps(implementation)
    def call(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return implementation(first, *others)

    return call  # type: ignore[return-value]
