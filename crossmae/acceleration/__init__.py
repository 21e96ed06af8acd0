"""Training code written for a release's model, on this package's operations: two lines, and one to undo it."""

from typing import Any

import torch
from torch import nn

from crossmae.acceleration.agreement import agree, compare_steps
from crossmae.acceleration.autocast import observe_autocast
from crossmae.acceleration.contract import Contract, Result, parameters_of
from crossmae.acceleration.forward import (
    CrossAttentionForward,
    ModelForward,
    ModuleForward,
    SelfAttentionForward,
    result_names,
)
from crossmae.acceleration.observation import is_sharded, observe, observe_step, sample_images
from crossmae.acceleration.structure import (
    BLOCKS,
    SELF_ATTENTION_BLOCK,
    Structure,
    blocks_of,
    read_structure,
    require_no_obstacles,
)
from crossmae.checkpoint.release import FIELDS, MAPS

__all__ = ["accelerate", "restore"]


def accelerate(model: nn.Module, **arguments: Any) -> nn.Module:
    """Let a model with a release's names, CrossMAE's or MAE's, compute with this package's operations, in place.

    It remains the model it is: its parameters and state dict, its forward's arguments, defaults and results, and the
    autocast that its forward opens. Layers are looked up at every call, so the model may be copied, pickled, sharded
    by ``fully_shard`` before or after, wrapped, compiled, exported, or given other parameters or layers. Hooks on the
    model and on its blocks, and activation checkpointing of blocks, work as ever; with hooks on decoder blocks, or
    sharded ones, keys and values are projected block by block instead of all at once. Other submodules are not called.

    The model's own forward runs once for each value of its Boolean arguments, on two images of noise: what it returns
    is what will be returned, and where it does not agree with what would be computed, it is refused.

    Args:
        model: any module with those submodules and parameters, for example the release's own.
        arguments: constructor arguments of the release (see ``from_release``) that cannot be read off the model, such
            as ``num_heads`` where its attention has no such attribute.

    Returns:
        The model.

    Raises:
        TypeError: on an argument that the release does not have.
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
    _require_whole_sharding(model)
    structure = read_structure(model, arguments)
    require_no_obstacles(model, structure)
    defaults, flags = parameters_of(model)
    images = sample_images(model, structure.channels, structure.image_size, structure.patch_size)
    autocast = {images.device.type: observe_autocast(model, images)}
    if torch.cuda.is_available():
        autocast["cuda"] = observe_autocast(model, images.cuda())
    # Exactly, to tell one formula from another; and as it is, for dtypes.
    passes = (True, False) if autocast[images.device.type][None] else (True,)
    own = {exactly: observe(model, images, defaults, flags, exactly) for exactly in passes}
    step = None if is_sharded(model) else observe_step(model, images, defaults, flags)
    names = result_names(structure)
    everything = dict.fromkeys(own[True], tuple(map(Result, names)))
    forward = _replace_forwards(model, structure, arguments, Contract(defaults, flags, everything))
    forward.autocast = autocast
    try:
        for exactly in passes:
            ours = observe(model, images, defaults, flags, exactly)
            # FSDP2 may let parts compute in 16 bits too.
            within = torch.bfloat16 if is_sharded(model) else None if exactly else autocast[images.device.type][None]
            templates = agree(own[exactly], ours, names, within)
        forward.contract = Contract(defaults, flags, templates)
        if step is not None:
            compare_steps(step, observe_step(model, images, defaults, flags))
    except BaseException:
        restore(model)
        raise
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
    if not any(isinstance(module.__dict__["forward"], ModelForward) for module in accelerated):
        raise ValueError("restore: the model's forward was replaced after it was accelerated; undo that first")
    for module in accelerated:
        del module.forward
    return model


def _accelerated(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module.__dict__.get("forward"), ModuleForward)]


def _replace_forwards(
    model: nn.Module, structure: Structure, arguments: dict[str, Any], contract: Contract
) -> ModelForward:
    encoder, decoder = (blocks_of(model, path) for path in BLOCKS)
    for index, block in enumerate(encoder):
        block.forward = SelfAttentionForward(block, f"blocks.{index}.", SELF_ATTENTION_BLOCK, structure.heads)
    kind = SelfAttentionForward if structure.maps is None else CrossAttentionForward
    for index, block in enumerate(decoder):
        block.forward = kind(block, f"decoder_blocks.{index}.", structure.decoder_block, structure.decoder_heads)
    forward = ModelForward(model, structure, structure.outside_of_blocks(len(decoder)), arguments, contract)
    model.forward = forward
    return forward


def _require_whole_sharding(model: nn.Module) -> None:
    """Running the model would take its shards, if it is to be sharded as a whole later, for all there are."""
    sharded = [name for name, module in model.named_modules() if hasattr(module, "set_reshard_after_forward")]
    if sharded and sharded[0] != "":
        raise ValueError(
            f"accelerate: {sharded[0]} is sharded and the model is not yet; call fully_shard on the model first, "
            "or accelerate before any of it is sharded"
        )
