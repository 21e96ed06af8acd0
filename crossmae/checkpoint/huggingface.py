"""Hugging Face's layout: a ViTMAE or ViT folder, whose config.json holds the settings that tensors do not show."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae.checkpoint.names import Names
from crossmae.model.config import field_types
from crossmae.model.values import expected_instead, pair

_QKV = ("query", "key", "value")
# Version 5 renamed modules, and its ``save_pretrained`` spells the decoder's blocks in a third way. The first of
# each is the spelling of the published files, which every version reads.
_NAMES = Names(
    others=[
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("layernorm.", "norm."),
        ("decoder.mask_token", "mask_token"),
        ("decoder.decoder_", "decoder_"),
    ],
    blocks=[
        ("encoder.layer.", "blocks."),
        ("layers.", "blocks."),
        ("decoder.decoder_layers.", "decoder_blocks."),
        ("decoder.decoder_encoder.layer.", "decoder_blocks."),
    ],
    parts=[
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("attention.output.dense.", "attn.proj."),
        ("attention.o_proj.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        *((f"attention.attention.{name}.", f"{name}.") for name in _QKV),
        *((f"attention.{name[0]}_proj.", f"{name}.") for name in _QKV),
    ],
)

_MODELS = ("vit_mae", "vit")
# Our fields in config.json, with Hugging Face's defaults for those it leaves out.
_ENCODER: dict[str, tuple[str, Any]] = {
    "encoder_heads": ("num_attention_heads", 12),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "channels": ("num_channels", 3),
}
_DECODER: dict[str, tuple[str, Any]] = {
    "decoder_heads": ("decoder_num_attention_heads", 16),
    "normalize_targets": ("norm_pix_loss", False),
}
# Settings that tensors show as well: the dimension of one, and the number of blocks. They have no default here.
_SIZES = {
    "hidden_size": ("cls_token", -1),
    "intermediate_size": ("blocks.0.mlp.fc1.weight", 0),
    "decoder_hidden_size": ("mask_token", -1),
    "decoder_intermediate_size": ("decoder_blocks.0.mlp.fc1.weight", 0),
}
_DEPTHS = {"num_hidden_layers": "blocks", "decoder_num_hidden_layers": "decoder_blocks"}
_FIXED = {"hidden_act": "gelu", "qkv_bias": True}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the releases' names, with queries, keys and values joined; unknown names are kept."""
    names = {_NAMES.read(name.removeprefix("vit.")): tensor for name, tensor in tensors.items()}
    for name in [name for name in names if re.search(r"blocks\.\d+\.query\.\w+$", name)]:
        parts = [name.replace(".query.", f".{part}.") for part in _QKV]
        whole = names.keys() >= set(parts) and len({names[part].shape for part in parts}) == 1
        if whole and all(names[part].is_floating_point() for part in parts):
            names[name.replace(".query.", ".attn.qkv.")] = torch.cat([names.pop(part) for part in parts])
    return names


def written(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``renamed``, for a ViT or, if there is a decoder among the tensors, a ViTMAE."""
    names: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            names |= {
                name.replace(".attn.qkv.", f".{part}."): rows for part, rows in zip(_QKV, tensor.chunk(3), strict=True)
            }
        else:
            names[name] = tensor
    theirs = {_NAMES.written(name): tensor for name, tensor in names.items()}
    if "mask_token" not in tensors:
        return theirs
    return {name if name.startswith("decoder.") else f"vit.{name}": tensor for name, tensor in theirs.items()}


def needed(decoder: str | None) -> tuple[str, ...]:
    """The fields of ``Config`` that a model needs but that no tensor's shape shows."""
    return ("encoder_heads", "norm_eps", *(() if decoder is None else tuple(_DECODER)))


def told_by_config(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Fields of ``Config`` from a folder's config.json; None if there is no such file.

    Raises ValueError if the model is of another kind, cannot be expressed, or does not have these tensors (given under
    the releases' names).
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        kind = values.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if kind not in _MODELS:
        raise ValueError(f"{path} describes a model of type {kind!r}; supported are {' and '.join(_MODELS)}")
    wrong = [f"{name} {values[name]!r}" for name, only in _FIXED.items() if values.get(name, only) != only]
    if wrong:
        raise ValueError(f"{path} asks for {', '.join(wrong)}; only {_FIXED} is supported")
    known = {**_ENCODER, **(_DECODER if kind == "vit_mae" else {})}
    told = {field: values.get(name, default) for field, (name, default) in known.items()}
    told["image_size"] = pair(told["image_size"])
    match told["patch_size"]:
        case [int(height), int(width)]:
            told["patch_size"] = height if height == width else (height, width)
    wrong = [
        f"{known[field][0]} must be {expected}, got {values.get(known[field][0])!r}"
        for field, value in told.items()
        if (expected := expected_instead(value, field_types()[field]))
    ] or _contradictions(values, tensors)
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return told


def _contradictions(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Sizes in a config.json that the tensors contradict."""
    wrong = [
        f"{name} is {values[name]!r}, but {tensors[tensor].shape[dimension]} according to the shape of {tensor}"
        for name, (tensor, dimension) in _SIZES.items()
        if name in values and tensor in tensors and values[name] != tensors[tensor].shape[dimension]
    ]
    for name, prefix in _DEPTHS.items():
        there, depth = {tensor.split(".")[1] for tensor in tensors if tensor.startswith(f"{prefix}.")}, values.get(name)
        if there and name in values and depth != len(there):
            first = next(i for i in range(len(there) + 1) if str(i) not in there)
            missing = f": missing {prefix}.{first}" if isinstance(depth, int) and depth > len(there) else ""
            wrong.append(f"{name} is {depth!r}, but there are {len(there)} blocks{missing}")
    return wrong
