"""Find the autocast in which a model's own forward computes, given the one it is called in."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# Autocast's dtype, None if it is off.
State = torch.dtype | None

_OUTER: tuple[State, ...] = (None, torch.bfloat16, torch.float16)


class _ReachedError(Exception):
    """The forward reached its first layer."""


def state_of(device_type: str) -> State:
    """The current autocast for a device type."""
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def observe_autocast(model: nn.Module, images: Tensor) -> dict[State, State]:
    """The autocast inside the model's own forward, for each one outside.

    Runs the forward only up to its patch embedding.
    """
    device_type = images.device.type
    if not torch.amp.is_autocast_available(device_type):
        return {None: None}
    found: dict[State, State] = {}

    def note(*_: Any) -> None:
        found[outer] = state_of(device_type)
        raise _ReachedError

    hook = model.get_submodule("patch_embed").register_forward_pre_hook(note, prepend=True)
    try:
        for outer in _OUTER:
            with (
                torch.autocast(device_type, outer, enabled=outer is not None),
                torch.random.fork_rng([images.device] if images.is_cuda else []),
                warnings.catch_warnings(),
            ):
                # Some forwards enable CUDA autocast even on a CPU, where it warns and does nothing.
                warnings.simplefilter("ignore")
                try:
                    type(model).forward(model, images)
                except _ReachedError:
                    continue
            raise ValueError(f"accelerate: {type(model).__name__}.forward does not call its patch_embed")
    finally:
        hook.remove()
    return found


def within(device_type: str, inner: State) -> AbstractContextManager[Any]:
    """Compute under the autocast ``inner``."""
    if inner == state_of(device_type):
        return nullcontext()
    return torch.autocast(device_type, inner, enabled=inner is not None)
