"""Hugging Face's layout: a folder of ViTMAE, or of ViT, whose config.json tells what tensors do not."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae.model.config import field_types
from crossmae.model.values import expected_instead, pair

# Their names on the left, those of the releases on the right. ``save_pretrained`` writes the first of two spellings;
# the second is that of modules of version 5 and of decoders that were published.
_RENAMES = [
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"decoder\.(mask_token|decoder_pos_embed|decoder_(?:embed|norm|pred)\.\w+)", r"\1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", r"blocks.\1.\2"),
    (r"decoder\.(?:decoder_encoder\.layer|decoder_layers)\.(\d+)\.(.+)", r"decoder_blocks.\1.\2"),
]
_PARTS = [
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.output\.dense|attention\.o_proj", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    *((rf"attention\.attention\.{name}|attention\.{name[0]}_proj", name) for name in ("query", "key", "value")),
]

_MODELS = ("vit_mae", "vit")
# What config.json tells of ours, with the defaults that hold for what it leaves out.
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
# What tensors tell as well: the dimension of one, and the number of blocks. Nothing holds for what is left out.
_SIZES = {
    "hidden_size": ("cls_token", -1),
    "intermediate_size": ("blocks.0.mlp.fc1.weight", 0),
    "decoder_hidden_size": ("mask_token", -1),
    "decoder_intermediate_size": ("decoder_blocks.0.mlp.fc1.weight", 0),
}
_DEPTHS = {"num_hidden_layers": "blocks", "decoder_num_hidden_layers": "decoder_blocks"}
_FIXED = {"hidden_act": "gelu", "qkv_bias": True}


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the releases' names, queries, keys and values joined; unknown names stay."""
    names = {_renamed(name): tensor for name, tensor in tensors.items()}
    for name in [name for name in names if re.search(r"blocks\.\d+\.query\.\w+$", name)]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        whole = names.keys() >= set(parts) and len({names[part].shape for part in parts}) == 1
        if whole and all(names[part].is_floating_point() for part in parts):
            names[name.replace(".query.", ".attn.qkv.")] = torch.cat([names.pop(part) for part in parts])
    return names


def _renamed(name: str) -> str:
    plain = name.removeprefix("vit.")
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, plain):
            plain = re.sub(pattern, replacement, plain)
            break
    else:
        return name
    block = re.fullmatch(r"((?:decoder_)?blocks\.\d+)\.(.+)\.(\w+)", plain)
    if block:
        for pattern, replacement in _PARTS:
            if re.fullmatch(pattern, block[2]):
                return f"{block[1]}.{replacement}.{block[3]}"
    return plain


def needed(decoder: str | None) -> tuple[str, ...]:
    """The fields of ``Config`` that a model needs and no shape of a tensor tells."""
    return ("encoder_heads", "norm_eps", *(() if decoder is None else tuple(_DECODER)))


def told_by_config(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Fields of ``Config`` that a folder's config.json tells; None if there is no such file.

    Raises ValueError for a model of another kind, one that cannot be expressed, or one that has not these tensors, by
    the releases' names.
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
        raise ValueError(f"{path} is of a model of type {kind!r}; there are {' and '.join(_MODELS)}")
    wrong = [f"{name} {values[name]!r}" for name, only in _FIXED.items() if values.get(name, only) != only]
    if wrong:
        raise ValueError(f"{path} asks for {', '.join(wrong)}; there is only {_FIXED}")
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
    """What a config.json says about the sizes of tensors that they are not."""
    wrong = [
        f"{name} is {values[name]!r}, and {tensors[tensor].shape[dimension]} by the shape of {tensor}"
        for name, (tensor, dimension) in _SIZES.items()
        if name in values and tensor in tensors and values[name] != tensors[tensor].shape[dimension]
    ]
    for name, prefix in _DEPTHS.items():
        there, depth = {tensor.split(".")[1] for tensor in tensors if tensor.startswith(f"{prefix}.")}, values.get(name)
        if there and name in values and depth != len(there):
            first = next(i for i in range(len(there) + 1) if str(i) not in there)
            missing = f": missing {prefix}.{first}" if isinstance(depth, int) and depth > len(there) else ""
            wrong.append(f"{name} is {depth!r}, and there are {len(there)} blocks{missing}")
    return wrong
