"""Infer what a model's tensors show of its configuration: from their shapes and the table of positions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae.checkpoint.messages import first_few
from crossmae.model.positions import sincos_positions

# Root mean square: the table of any other grid is at least 0.116 away, one learned from small values 0.7. The same
# table rounded to bfloat16 is 0.0007 away; the rest is room for one that was trained further.
_SAME_TABLE = 0.1

_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
_DIMENSIONS = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "mask_token": 3,
    "decoder_blocks.0.mlp.fc1.weight": 2,
    "wfm.linear.weight": 2,
}
OF_A_DECODER = ("mask_token", "decoder_", "wfm.", "dec_norms.")
# Parts that other vision transformers have, but none of this package.
_OTHER_PARTS = {
    "layer scale": r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])",
    "query and key norms": r"blocks\.\d+\.attn\.[qk]_norm\.",
    "a norm before its blocks": r"norm_pre\.",
}
# DeiT's distillation token and registers: models of this package have class tokens only.
_MORE_TOKENS = ("dist_token", "reg_token", "register_tokens", "storage_tokens")


def told_by_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Fields of ``Config`` that are certain, from tensors under the releases' names.

    That excludes ``image_size`` if the positions are not a sin-cos table, and the ``feature_maps`` of a CrossMAE.

    Raises ValueError if the tensors do not belong to a model of this kind.
    """
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise ValueError(
            f"{path} is neither a checkpoint of ours nor of the CrossMAE or MAE release: it has no "
            f"{', '.join(missing)} among its {len(tensors)} tensors, nor under Hugging Face's names for these"
        )
    flat = [name for name, dimensions in _DIMENSIONS.items() if name in tensors and tensors[name].ndim != dimensions]
    if flat:
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in flat)
        raise ValueError(f"{path} holds a model of another kind; these have another number of dimensions: {shapes}")
    tokens = [name for name in tensors if name.startswith(_MORE_TOKENS)]
    if tokens:
        raise ValueError(f"{path} holds a model of another kind: besides the class token it has {first_few(tokens)}")
    for part, pattern in _OTHER_PARTS.items():
        if names := [name for name in tensors if re.match(pattern, name)]:
            raise ValueError(f"{path} holds a model of another kind, with {part}: {first_few(names)}")
    class_tokens, width = tensors["cls_token"].shape[1:]
    _, channels, *sides = tensors["patch_embed.proj.weight"].shape
    told: dict[str, Any] = {
        "channels": channels,
        "patch_size": sides[0] if sides[0] == sides[1] else tuple(sides),
        "class_tokens": class_tokens,
        "encoder_width": width,
        "encoder_depth": _blocks(tensors, "blocks"),
        "mlp_ratio": _ratio(tensors["blocks.0.mlp.fc1.weight"].shape[0], width),
    }
    parts = [name for name in tensors if name.startswith(OF_A_DECODER)]
    if parts:
        missing = [name for name in ("mask_token", "decoder_blocks.0.norm1.weight") if name not in tensors]
        if missing:
            raise ValueError(f"{path} has parts of a decoder, {first_few(parts)}, but no {', '.join(missing)}")
        told["decoder"] = "mae" if "decoder_embed.weight" in tensors else "crossmae"
        told["decoder_width"] = tensors["mask_token"].shape[-1]
        told["decoder_depth"] = _blocks(tensors, "decoder_blocks")
        told["decoder_self_attention"] = "decoder_blocks.0.self_attn.qkv.weight" in tensors
        if "wfm.linear.weight" not in tensors:
            told["feature_maps"] = None
    else:
        # Without a final norm in the encoder, its last map is the one feature map mixed.
        told |= {"decoder": None, "feature_maps": None if "norm.weight" in tensors else (told["encoder_depth"],)}
    grids = {grid for name in ("pos_embed", "decoder_pos_embed") if (grid := _grid(tensors.get(name), class_tokens))}
    if len(grids) > 1:
        raise ValueError(f"{path} has position embeddings of different grids for encoder and decoder: {sorted(grids)}")
    for rows, columns in grids:
        told["image_size"] = (rows * sides[0], columns * sides[1])
    return told


def _blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The number of numbered blocks under a prefix."""
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")})


def _ratio(hidden: int, width: int) -> float:
    """``hidden / width``, or the next float if rounding would lose one hidden channel."""
    ratio = torch.tensor(hidden / width, dtype=torch.float64)
    if int(width * float(ratio)) < hidden:
        ratio = ratio.nextafter(torch.tensor(torch.inf, dtype=torch.float64))
    return float(ratio)


def _grid(positions: Tensor | None, class_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the grid whose sin-cos table ``(1, class_tokens + rows * columns, D)`` is; else None."""
    if positions is None or positions.ndim != 3 or positions.shape[1] <= class_tokens or positions.shape[2] % 4:
        return None
    table = positions[0, class_tokens:].float()
    patches, width = table.shape

    def distance(grid: tuple[int, int]) -> float:
        return float((sincos_positions(width, grid, 0)[0] - table).square().mean().sqrt())

    grids = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    nearest = min(grids, key=distance)
    return nearest if distance(nearest) < _SAME_TABLE else None
