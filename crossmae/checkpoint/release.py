"""The layout of the CrossMAE and MAE releases, which timm shares: tensor names and constructor arguments."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from crossmae.checkpoint.filling import filled
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, field_types
from crossmae.model.values import as_tuple, expected_instead, pair

# Our names on the left, the releases' on the right. The first match applies.
_RENAMES = [
    (r"encoder\.positions", r"pos_embed"),
    (r"encoder\.patch_embed\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.(.+)", r"\1"),
    (r"decoder\.positions", r"decoder_pos_embed"),
    (r"decoder\.mixing\.weight", r"wfm.linear.weight"),
    (r"decoder\.mixing\.norms\.(.+)", r"dec_norms.\1"),
    (r"decoder\.mask_token", r"mask_token"),
    (r"decoder\.head\.(.+)", r"decoder_pred.\1"),
    (r"decoder\.(embed|blocks|norm)\.(.+)", r"decoder_\1.\2"),
]

# The constructor arguments of the releases and their defaults.
_DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "decoder_embed_dim": 512,
    "decoder_depth": 8,
    "decoder_num_heads": 16,
    "mlp_ratio": 4.0,
    "norm_pix_loss": False,
    "weight_fm": False,
    "use_fm": (-1,),
    "use_input": False,
    "self_attn": False,
}

# Arguments that correspond to one field of ``Config`` each. ``img_size`` is the size the checkpoint was trained with.
FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "channels",
    "embed_dim": "encoder_width",
    "depth": "encoder_depth",
    "num_heads": "encoder_heads",
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_pix_loss": "normalize_targets",
    "self_attn": "decoder_self_attention",
}
# Arguments that choose feature maps together, and their types.
MAPS = {"weight_fm": bool, "use_fm": tuple[int, ...], "use_input": bool}


def to_release(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a model's tensors, weights or gradients alike, to the names that the releases use."""
    return {release_name(name): tensor for name, tensor in named.items()}


def release_name(name: str) -> str:
    """The releases' name of a tensor of ours; raises ValueError if it is none."""
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ValueError(f"{name!r} is not a tensor of this package's models")


def from_release(state_dict: Mapping[str, Tensor], **arguments: Any) -> MaskedAutoencoder:
    """A model with the weights of a release's state dict, CrossMAE's or MAE's.

    Args:
        state_dict: tensors under the release's names.
        arguments: the constructor arguments that the release's model was built with, under the release's names
            (``img_size``, ``patch_size``, ``in_chans``, ``embed_dim``, ``depth``, ``num_heads``, ``decoder_embed_dim``,
            ``decoder_depth``, ``decoder_num_heads``, ``mlp_ratio``, ``norm_pix_loss``; CrossMAE's ``weight_fm``,
            ``use_fm``, ``use_input``, ``self_attn``), with the release's defaults.

    Raises:
        TypeError: on an argument that the release does not have.
        ValueError: if an argument is of another type; if tensors are missing, unexpected or of another shape than the
            arguments ask for, with the first few; if ``use_fm`` names blocks that are not there.
    """
    unknown = sorted(set(arguments) - set(_DEFAULTS))
    if unknown:
        raise TypeError(f"from_release: no argument {', '.join(unknown)}; there are {', '.join(_DEFAULTS)}")
    if wrong := wrong_types(arguments):
        raise ValueError(f"from_release: {'; '.join(wrong)}")
    values = {**_DEFAULTS, **arguments}
    is_mae = "decoder_embed.weight" in state_dict
    fields = {field: values[name] for name, field in FIELDS.items()}
    fields["image_size"] = pair(fields["image_size"])
    if values["weight_fm"] and not is_mae:
        mixing = state_dict.get("wfm.linear.weight")
        depth, use_input = values["depth"], values["use_input"]
        columns = depth + bool(use_input) if mixing is None else mixing.shape[-1]
        fields["feature_maps"] = feature_maps(depth, columns, values["use_fm"], use_input)
    config = Config(decoder="mae" if is_mae else "crossmae", **fields)
    return filled(config, state_dict, "the release's state dict", release_name)


def wrong_types(arguments: Mapping[str, Any]) -> list[str]:
    """Which arguments, by the releases' names or those of ``Config``, are of another type than theirs."""
    kinds, wrong = {**field_types(), **MAPS}, []
    for name, value in arguments.items():
        field = FIELDS.get(name, name)
        plain = pair(value) if field == "image_size" else as_tuple(value)
        if field in kinds and (expected := expected_instead(plain, kinds[field])):
            wrong.append(f"{name} must be {'an integer or ' * (field == 'image_size')}{expected}, got {value!r}")
    return wrong


def feature_maps(
    depth: int, columns: int, use_fm: Sequence[int] | None = None, use_input: bool | None = None
) -> tuple[int, ...] | None:
    """The release's choice of maps as ``Config.feature_maps``; None where more than one choice is possible.

    The release counts blocks from 0, or from the end if negative, where map 0 of ours is the encoder's input. Its
    default, -1 alone, stands for every block; the number of mixing weights tells it from the last block.

    Args:
        depth: of the encoder.
        columns: of the mixing weights, one for each map.
        use_fm: as the release's, if known.
        use_input: as the release's, if known.

    Raises:
        ValueError: if a block is not there, or no choice has as many maps as there are columns.
    """
    if any(not -depth <= block < depth for block in use_fm or ()):
        raise ValueError(
            f"use_fm counts the {depth} blocks of the encoder from 0 to {depth - 1}, got {list(use_fm or ())}"
        )
    every = set(range(depth))
    choices = set()
    for with_input in [False, True] if use_input is None else [bool(use_input)]:
        if use_fm is None:
            if 0 < columns - with_input < depth:
                return None  # any of the blocks
            candidates = [every]
        else:
            named = {block % depth for block in use_fm}
            candidates = [every, named] if list(use_fm) == [-1] else [named]
        choices |= {
            (0,) * with_input + tuple(sorted(block + 1 for block in blocks))
            for blocks in candidates
            if len(blocks) + with_input == columns
        }
    if not choices:
        raise ValueError(
            f"{columns} maps are mixed, which use_fm={use_fm} and use_input={use_input} are not, of {depth} blocks"
        )
    return choices.pop() if len(choices) == 1 else None
