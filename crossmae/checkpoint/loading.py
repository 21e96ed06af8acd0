"""``load``: from a file of any kind to a model, with what the file does not tell asked for or assumed aloud."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossmae.checkpoint.configuration import configuration, named_as_released, on_top, told_by_training
from crossmae.checkpoint.filling import filled, resized
from crossmae.checkpoint.messages import ArgumentError
from crossmae.checkpoint.reading import find, read
from crossmae.checkpoint.release import release_name, wrong_types
from crossmae.checkpoint.saving import CONFIG_KEY
from crossmae.checkpoint.wrappers import find_state_dict
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.values import pair

_RUNNING = ("drop_path", "gradient_checkpointing", "hidden_layer", "residual")
# Fields that every file of ours has; those that came later have a default that holds for the files before.
_ALWAYS = (
    "image_size",
    "patch_size",
    "channels",
    "encoder_width",
    "encoder_depth",
    "encoder_heads",
    "decoder",
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "mlp_ratio",
    "feature_maps",
    "decoder_self_attention",
    "normalize_targets",
)


class CheckpointWarning(UserWarning):
    """What was assumed of a checkpoint, or left out of it."""


def load(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    key: str | None = None,
    **arguments: Any,
) -> MaskedAutoencoder:
    """The model of a checkpoint, recognised by its content.

    Ours, with its configuration or as a bare ``state_dict()``; CrossMAE's and MAE's releases; an encoder alone or
    fine-tuned, as MAE, timm and torchvision publish them; Hugging Face's ViTMAE and ViT. Prefixes of DDP, FSDP,
    torch.compile, Lightning and EMA are taken off. Of an encoder alone the model has ``encode`` and no decoder.

    Args:
        path: a safetensors file, one written by ``torch.save``, an index of shards, or a folder that holds
            ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards, such as that of a training run.
        image_size: interpolate the position embeddings, in 2-D, for images of this size; the checkpoint's own
            unless given.
        key: where in the file the weights are, such as ``"model_ema"``, if there is more than one model. Of raw and
            averaged weights the raw ones are taken unless it is given.
        arguments: ``drop_path``, ``gradient_checkpointing``, ``hidden_layer`` and ``residual`` of ``Config``, for
            every file. And what a file does not tell, as a field of ``Config`` or as a constructor argument of the
            release (see ``from_release``): ``num_heads``, ``img_size``, ``norm_pix_loss``, ``use_fm`` and others.

    Warns:
        CheckpointWarning: once, of everything that was assumed or left out.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: on arguments that do not exist, or are given for a file of ours that tells its configuration.
        ValueError: if an argument is of another type, or its two spellings differ; if the file is not a checkpoint or
            damaged, holds other tensors than the model has, does not tell what cannot be assumed, or tells something
            else than the arguments.
    """
    wrong = wrong_types({**arguments, **({} if image_size is None else {"image_size": image_size})})
    if key is not None and type(key) is not str:
        wrong.append(f"key must be a string or None, got {key!r}")
    if wrong:
        raise ValueError(f"load: {'; '.join(wrong)}")
    file = find(path)
    content, metadata = read(file)
    running = {name: arguments.pop(name) for name in _RUNNING if name in arguments}
    said: list[str] = []
    if CONFIG_KEY in metadata:
        if key is not None:
            arguments["key"] = key
        if arguments:
            raise ArgumentError(f"{file} tells its configuration itself; remove {', '.join(arguments)}")
        model = filled(replace(own_config(metadata[CONFIG_KEY], file), **running), content, str(file))
    else:
        state, said = find_state_dict(content, file, key)
        named = named_as_released(state)
        left_out = on_top(named, said)
        named = {name: tensor for name, tensor in named.items() if name not in left_out}
        config = configuration(file, named, state.layout, told_by_training(content), arguments, said)
        tensors, rename = (state.tensors, str) if state.layout == "ours" else (named, release_name)
        model = filled(replace(config, **running), tensors, str(file), rename)
    if image_size is not None and pair(image_size) != model.config.image_size:
        model = resized(model, pair(image_size))
    if said:
        warnings.warn(f"{file}: {'; '.join(said)}", CheckpointWarning, stacklevel=2)
    return model


def own_config(text: str, file: Path) -> Config:
    """The configuration that a file of ours holds; raises ValueError if it is none, or a newer version's."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} holds a configuration that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a configuration that must be a JSON object, got {text[:80]!r}")
    if unknown := sorted(values.keys() - Config.__dataclass_fields__.keys()):
        raise ValueError(f"{file} was written by a newer version: unknown field {', '.join(unknown)}")
    if missing := [field for field in _ALWAYS if field not in values]:
        raise ValueError(f"{file} holds a configuration without {', '.join(missing)}")
    try:
        return Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{file} holds a configuration that cannot be: {error}") from error
