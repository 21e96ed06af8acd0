"""Run other libraries' models on this package's operations: one call to accelerate a model, one to undo it."""

from typing import Any

import torch
from torch import nn

from crossmae.acceleration.forward import ModuleForward
from crossmae.acceleration.model_forward import ModelForward
from crossmae.acceleration.observation import require_values
from crossmae.acceleration.parts import accelerate_parts, find_parts
from crossmae.acceleration.release import accelerate_release
from crossmae.acceleration.structure import has_release_blocks, require_names, require_unwrapped
from crossmae.checkpoint.release import FIELDS, MAPS

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module, **arguments: Any) -> nn.Module:
    """Make a model compute with this package's operations, in place.

    The model keeps its parameters and state dict, its forward's arguments, defaults and results, and any autocast
    that its forward enables. Layers are looked up at every call, so the model may be copied, pickled, sharded by
    ``fully_shard``, wrapped, compiled, exported, or given other parameters or layers. Hooks on the model and its
    blocks, and activation checkpointing of blocks, keep working; if decoder blocks have hooks or are sharded, keys and
    values are projected block by block instead of all at once.

    What is replaced depends on the model's submodules, not on its class:

    - With the names of the CrossMAE or MAE release: the whole forward; submodules other than blocks are not called.
      Such a model may already be sharded. Its own forward runs once for each value of its Boolean arguments, on two
      images of noise, to learn what it returns; if the results do not agree with ours, the model is refused.
    - Otherwise: every transformer block with the names of timm, birder or Hugging Face, every CrossMAE decoder with
      those of stable-pretraining and every CrossMAE with those of birder, anywhere in the model. Everything else is
      called as before. Each part's own forward runs twice on noise, and is compared in the same way.

    Args:
        model: any module with such submodules.
        arguments: constructor arguments of the release (see ``from_release``) that the model does not show, such as
            ``num_heads`` if its attention has no such attribute.

    Returns:
        The model.

    Raises:
        TypeError: if an argument does not exist, or is passed for a model that is not a release's.
        ValueError: before anything is changed, naming what is not supported (a hook on a layer, dropout, an unknown
            submodule), what the model does not show, or which argument contradicts it. A hook on a layer, or dropout,
            added later raises a RuntimeError at the next call.
    """
    known = (*FIELDS, *MAPS)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise TypeError(f"accelerate: no argument {', '.join(unknown)}; choose from {', '.join(known)}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: expected a module, got {type(model).__name__}")
    if _accelerated(model):
        raise ValueError(f"accelerate: this {type(model).__name__} is already accelerated; see crossmae.restore")
    require_unwrapped(model)
    require_values(model)
    # Tensors made in inference mode, such as noise, have no gradients outside it.
    with torch.inference_mode(False):
        _accelerate(model, arguments)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate`` on a model or a copy of one, wrapped or not; its tensors are unchanged.

    Raises:
        ValueError: if nothing in it is accelerated.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: expected a module, got {type(model).__name__}")
    accelerated = _accelerated(model)
    if not accelerated:
        raise ValueError(f"restore: this {type(model).__name__} is not accelerated")
    is_release = any(has_release_blocks(module) for module in model.modules())
    if is_release and not any(isinstance(module.__dict__["forward"], ModelForward) for module in accelerated):
        raise ValueError("restore: the model's forward was replaced after it was accelerated; undo that first")
    for module in accelerated:
        del module.forward
    return model


def _accelerate(model: nn.Module, arguments: dict[str, Any]) -> None:
    if has_release_blocks(model):
        accelerate_release(model, arguments, restore)
        return
    parts = find_parts(model)
    if not parts:
        require_names(model)
    if arguments:
        given = ", ".join(sorted(arguments))
        raise TypeError(
            f"accelerate: {given} describe a release's model, but {type(model).__name__} shows everything itself"
        )
    accelerate_parts(model, parts, restore)


def _accelerated(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module.__dict__.get("forward"), ModuleForward)]
