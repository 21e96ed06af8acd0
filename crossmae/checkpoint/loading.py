"""``load``: from a file of any kind to a model; missing settings are asked for, or assumed with a warning."""

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
# Fields that every file of ours has; later fields have defaults that are right for older files.
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
    """Something was assumed about a checkpoint, or left out of it."""


def load(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    key: str | None = None,
    **arguments: Any,
) -> MaskedAutoencoder:
    """Load a model from a checkpoint, whose format is recognised by its content.

    Reads our own files, with a configuration or as a bare ``state_dict()``; those of the CrossMAE and MAE releases;
    encoders alone or fine-tuned, as MAE, timm and torchvision publish them; and Hugging Face's ViTMAE and ViT. Prefixes
    of DDP, FSDP, torch.compile, Lightning and EMA are removed. From an encoder alone, the model has ``encode`` and no
    decoder.

    Args:
        path: a safetensors file, a file written by ``torch.save``, an index of shards, or a folder with
            ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards, such as a training run's.
        image_size: interpolate the position embeddings in 2-D to this size; by default the checkpoint's own.
        key: where in the file the weights are, such as ``"model_ema"``, if it holds more than one model. By default
            raw weights are preferred to averaged ones.
        arguments: ``drop_path``, ``gradient_checkpointing``, ``hidden_layer`` and ``residual`` of ``Config``, for any
            file; and settings the file lacks, as fields of ``Config`` or constructor arguments of the release (see
            ``from_release``): ``num_heads``, ``img_size``, ``norm_pix_loss``, ``use_fm`` and others.

    Warns:
        CheckpointWarning: once, listing everything assumed or left out.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if an argument does not exist, or is passed for a file of ours that stores its configuration.
        ValueError: if an argument has the wrong type, or its two spellings disagree; if the file is not a checkpoint or
            is damaged, does not have the model's tensors, lacks a setting that cannot be assumed, or contradicts the
            arguments.
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
            raise ArgumentError(f"{file} stores its configuration; remove {', '.join(arguments)}")
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
    """The configuration stored in a file of ours; raises ValueError if it is invalid or from a newer version."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} holds a configuration that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold its configuration as a JSON object, got {text[:80]!r}")
    if unknown := sorted(values.keys() - Config.__dataclass_fields__.keys()):
        raise ValueError(f"{file} was written by a newer version: unknown field {', '.join(unknown)}")
    if missing := [field for field in _ALWAYS if field not in values]:
        raise ValueError(f"{file} holds a configuration without {', '.join(missing)}")
    try:
        return Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{file} holds an invalid configuration: {error}") from error
