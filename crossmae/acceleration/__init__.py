"""Training code written around somebody else's model, on this package's operations: two lines, and one to undo it."""

from typing import Any

from torch import nn

from crossmae.acceleration.forward import ModuleForward
from crossmae.acceleration.model_forward import ModelForward
from crossmae.acceleration.parts import accelerate_parts, find_parts
from crossmae.acceleration.release import accelerate_release
from crossmae.acceleration.structure import has_release_blocks, require_names, require_unwrapped
from crossmae.checkpoint.release import FIELDS, MAPS

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module, **arguments: Any) -> nn.Module:
    """Let a model compute with this package's operations, in place.

    It remains the model it is: its parameters and state dict, its forward's arguments, defaults and results, and the
    autocast that its forward opens. Layers are looked up at every call, so the model may be copied, pickled, sharded
    by ``fully_shard``, wrapped, compiled, exported, or given other parameters or layers. Hooks on the model and on its
    blocks, and activation checkpointing of blocks, work as ever; with hooks on decoder blocks, or sharded ones, keys
    and values are projected block by block instead of all at once.

    What is replaced depends on what the model is made of, whatever its class is called:

    - Under a release's names, CrossMAE's or MAE's, its whole forward; other submodules than blocks are not called.
      It may be sharded before too. The model's own forward runs once for each value of its Boolean arguments, on two
      images of noise: what it returns is what will be returned, and where it does not agree with what would be
      computed, it is refused.
    - Else every transformer block under the names of timm, birder or Hugging Face, every CrossMAE decoder under those
      of stable-pretraining and every CrossMAE under those of birder, wherever they stand in it. All else is called as
      ever. Each part's own forward runs twice on noise, and is compared in the same way.

    Args:
        model: any module with such submodules and parameters.
        arguments: constructor arguments of the release (see ``from_release``) that cannot be read off the model, such
            as ``num_heads`` where its attention has no such attribute.

    Returns:
        The model.

    Raises:
        TypeError: on an argument that the release does not have, or any where the model is none.
        ValueError: before anything is changed, naming what cannot be honoured (a hook on a layer, dropout, a submodule
            that is not known), what the model does not tell, or which argument contradicts it. A hook on a layer, or
            dropout, that comes later is refused at the next call, with a RuntimeError.
    """
    known = (*FIELDS, *MAPS)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise TypeError(f"accelerate: no argument {', '.join(unknown)}; there are {', '.join(known)}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: a module is needed, got {type(model).__name__}")
    if _accelerated(model):
        raise ValueError(f"accelerate: this {type(model).__name__} is accelerated already; see crossmae.restore")
    require_unwrapped(model)
    if has_release_blocks(model):
        accelerate_release(model, arguments, restore)
        return model
    parts = find_parts(model)
    if not parts:
        require_names(model)
    if arguments:
        given = ", ".join(sorted(arguments))
        raise TypeError(
            f"accelerate: {given} describe a release's model, {type(model).__name__} tells everything itself"
        )
    accelerate_parts(model, parts, restore)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate``, in a model or in a copy of one, wrapped or not; its tensors stay as they are.

    Raises:
        ValueError: if nothing in it is accelerated.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: a module is needed, got {type(model).__name__}")
    accelerated = _accelerated(model)
    if not accelerated:
        raise ValueError(f"restore: this {type(model).__name__} is not accelerated")
    is_release = any(has_release_blocks(module) for module in model.modules())
    if is_release and not any(isinstance(module.__dict__["forward"], ModelForward) for module in accelerated):
        raise ValueError("restore: the model's forward was replaced after it was accelerated; undo that first")
    for module in accelerated:
        del module.forward
    return model


def _accelerated(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module.__dict__.get("forward"), ModuleForward)]
