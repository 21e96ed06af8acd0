"""Models under a release's names, CrossMAE's or MAE's: their forward and their blocks' are replaced."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from crossmae.acceleration.agreement import agree, compare_steps
from crossmae.acceleration.autocast import observe_autocast
from crossmae.acceleration.contract import Contract, Result, parameters_of
from crossmae.acceleration.forward import CrossAttentionForward, SelfAttentionForward
from crossmae.acceleration.layers import SELF_ATTENTION
from crossmae.acceleration.model_forward import ModelForward, result_names
from crossmae.acceleration.observation import is_sharded, noise_images, observe, observe_step
from crossmae.acceleration.structure import BLOCKS, Structure, blocks_of, read_structure, require_no_obstacles


def accelerate_release(model: nn.Module, arguments: dict[str, Any], restore: Callable[[nn.Module], object]) -> None:
    """Replace the forwards of a release's model, where they compute the same as its own.

    Raises:
        ValueError: with nothing changed, as ``accelerate`` says.
    """
    _require_whole_sharding(model)
    structure = read_structure(model, arguments)
    require_no_obstacles(model, structure)
    defaults, flags = parameters_of(model)
    images = noise_images(model.cls_token, structure.channels, structure.image_size, structure.patch_size)
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


def _replace_forwards(
    model: nn.Module, structure: Structure, arguments: dict[str, Any], contract: Contract
) -> ModelForward:
    encoder, decoder = (blocks_of(model, path) for path in BLOCKS)
    for index, block in enumerate(encoder):
        block.forward = SelfAttentionForward(block, f"blocks.{index}.", SELF_ATTENTION, structure.heads)
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
