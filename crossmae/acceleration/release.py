"""Accelerate models with the CrossMAE or MAE release's names: replace the model's forward and its blocks'."""

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
from crossmae.acceleration.observation import has_gradients, is_sharded, noise_images, observe, observe_step
from crossmae.acceleration.structure import BLOCKS, Structure, blocks_of, read_structure, require_no_obstacles


def accelerate_release(model: nn.Module, arguments: dict[str, Any], restore: Callable[[nn.Module], object]) -> None:
    """Replace the forwards of a release's model, if ours compute the same as its own.

    Raises:
        ValueError: with nothing changed; see ``accelerate``.
    """
    _require_whole_sharding(model)
    structure = read_structure(model, arguments)
    require_no_obstacles(model, structure)
    defaults, flags = parameters_of(model)
    images = noise_images(model.cls_token, structure.channels, structure.image_size, structure.patch_size)
    autocast = {images.device.type: observe_autocast(model, images)}
    if torch.cuda.is_available():
        autocast["cuda"] = observe_autocast(model, images.cuda())
    # Exactly, to tell formulas apart; and under its own autocast, for dtypes.
    passes = (True, False) if autocast[images.device.type][None] else (True,)
    own = {exactly: observe(model, images, defaults, flags, exactly) for exactly in passes}
    step = observe_step(model, images, defaults, flags) if has_gradients(model) else None
    names = result_names(structure)
    everything = dict.fromkeys(own[True], tuple(map(Result, names)))
    forward = _replace_forwards(model, structure, arguments, Contract(defaults, flags, everything))
    forward.autocast = autocast
    try:
        for exactly in passes:
            ours = observe(model, images, defaults, flags, exactly)
            # FSDP2 may make parts compute in 16 bits too.
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
    """Refuse a model of which only parts are sharded: running it would make FSDP2 take a part for the root."""
    sharded = [name for name, module in model.named_modules() if hasattr(module, "set_reshard_after_forward")]
    if sharded and sharded[0] != "":
        raise ValueError(
            f"accelerate: {sharded[0]} is sharded, but the model is not; call fully_shard on the model first, "
            "or accelerate before sharding any of it"
        )
