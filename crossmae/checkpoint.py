"""Checkpoints: our own files (safetensors with the configuration inside), and those of CrossMAE's and MAE's releases.

Loading never runs code: tensors, plain containers and ``argparse.Namespace`` are all that is ever unpickled.
"""

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae.config import Config
from crossmae.files import replacing
from crossmae.model import MaskedAutoencoder
from crossmae.positions import interpolate_positions

# Our names on the left, the releases' on the right. Applied in order, the first that matches.
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
RELEASE_ARGUMENTS: dict[str, Any] = {
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

# Heads cannot be read off a state dict; these are the models the releases published, by (encoder, decoder) width.
_RELEASED_HEADS = {
    (384, 256): (6, 8),
    (768, 512): (12, 16),
    (1024, 512): (16, 16),
    (1280, 512): (16, 16),
}

_CONFIG_KEY = "crossmae_config"


def to_release(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a model's tensors, weights or gradients alike, to the names that the releases use."""
    return {_release_name(name): tensor for name, tensor in named.items()}


def _release_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ValueError(f"{name!r} is no tensor of this package's models")


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
        ValueError: naming every tensor that is missing, unexpected or of another shape than the arguments ask for.
    """
    unknown = sorted(set(arguments) - set(RELEASE_ARGUMENTS))
    if unknown:
        raise TypeError(f"from_release: no argument {', '.join(unknown)}; there are {', '.join(RELEASE_ARGUMENTS)}")
    values = {**RELEASE_ARGUMENTS, **arguments}
    is_mae = "decoder_embed.weight" in state_dict
    size = values["img_size"]
    config = Config(
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        patch_size=values["patch_size"],
        channels=values["in_chans"],
        encoder_width=values["embed_dim"],
        encoder_depth=values["depth"],
        encoder_heads=values["num_heads"],
        decoder="mae" if is_mae else "crossmae",
        decoder_width=values["decoder_embed_dim"],
        decoder_depth=values["decoder_depth"],
        decoder_heads=values["decoder_num_heads"],
        mlp_ratio=values["mlp_ratio"],
        feature_maps=_release_maps(state_dict, values) if values["weight_fm"] and not is_mae else None,
        decoder_self_attention=values["self_attn"],
        normalize_targets=values["norm_pix_loss"],
    )
    return _filled(config, state_dict, "the release's state dict", _release_name)


def _release_maps(state_dict: Mapping[str, Tensor], values: Mapping[str, Any]) -> tuple[int, ...]:
    """The release's ``use_fm`` (block indices, from the end if negative) and ``use_input`` as ``feature_maps``.

    Its default, -1 alone, stands for every block; the columns of the mixing weights tell it from the last block.
    """
    depth, use_input = values["depth"], bool(values["use_input"])
    chosen = [block % depth for block in values["use_fm"]]
    mixing = state_dict.get("wfm.linear.weight")
    if list(values["use_fm"]) == [-1] and (mixing is None or mixing.shape[1] != 1 + use_input):
        chosen = list(range(depth))
    return (0,) * use_input + tuple(sorted({block + 1 for block in chosen}))


def _filled(
    config: Config, state_dict: Mapping[str, Tensor], source: str, rename: Callable[[str], str] = str
) -> MaskedAutoencoder:
    """A model of the configuration with exactly the given tensors, copied, at least in float32.

    ``rename`` tells the name in the state dict of one of our tensors.
    """
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    ours = {rename(name): name for name in model.state_dict()}
    expected = {rename(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [f"missing {name} {shape}" for name, shape in expected.items() if name not in state_dict]
    wrong += [f"unexpected {name} {tuple(t.shape)}" for name, t in state_dict.items() if name not in expected]
    wrong += [
        f"{name} must have shape {expected[name]}, got {tuple(t.shape)}"
        for name, t in state_dict.items()
        if name in expected and tuple(t.shape) != expected[name]
    ]
    if wrong:
        raise ValueError(f"{source} does not fit the model: " + "; ".join(wrong))
    copies = {
        ours[name]: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True).contiguous()
        for name, tensor in state_dict.items()
    }
    model.load_state_dict(copies, assign=True)
    model.register_pixel_statistics()
    return model


def save(model: MaskedAutoencoder, path: str | os.PathLike[str]) -> None:
    """Write model and configuration to one safetensors file; an existing file is replaced whole or not at all."""
    save_state(model.state_dict(), model.config, path)


def save_state(state_dict: Mapping[str, Tensor], config: Config, path: str | os.PathLike[str]) -> None:
    """As ``save``, for a model whose tensors were gathered from elsewhere."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state_dict.items()}
    metadata = {_CONFIG_KEY: json.dumps(config.to_dict())}
    with replacing(path) as beside:
        save_file(tensors, beside, metadata=metadata)


def load(
    path: str | os.PathLike[str], image_size: int | tuple[int, int] | None = None, **arguments: Any
) -> MaskedAutoencoder:
    """The model of a checkpoint file: ours, CrossMAE's release or MAE's, recognised by its content.

    Args:
        path: a safetensors file, one written by ``torch.save``, or a folder that holds a ``model.safetensors``, such
            as that of a training run.
        image_size: interpolate the position embeddings, in 2-D, for images of this size; the checkpoint's own
            unless given.
        arguments: constructor arguments of the release (see ``from_release``) that its file does not tell, such as
            ``num_heads`` of a model that was never published. Not for our own files, which tell everything.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, is torn, or holds other tensors than the model has.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    tensors, metadata, training_arguments = _read(path)
    if _CONFIG_KEY in metadata:
        if arguments:
            raise TypeError(f"{path} tells its configuration itself; remove {', '.join(arguments)}")
        try:
            config = Config.from_dict(json.loads(metadata[_CONFIG_KEY]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds a configuration that cannot be read: {error}") from error
        model = _filled(config, tensors, str(path))
    else:
        told = {**_told_by_content(tensors, training_arguments, path), **arguments}
        if not {"num_heads", "decoder_num_heads"} <= told.keys():
            raise ValueError(
                f"{path} does not tell its numbers of heads (encoder width {told['embed_dim']}, decoder width "
                f"{told['decoder_embed_dim']}); give num_heads= and decoder_num_heads="
            )
        model = from_release(tensors, **told)
    if image_size is not None:
        model = _resized(model, (image_size, image_size) if isinstance(image_size, int) else image_size)
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Tensors by name, safetensors metadata, and the training arguments of a release's file."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        try:
            with safe_open(path, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}, {}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is no checkpoint, is damaged, or holds more than tensors and plain values: {_first_line(error)}"
        ) from error
    arguments: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        if isinstance(content.get("args"), argparse.Namespace):
            arguments = dict(vars(content["args"]))
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} must hold a state dict (alone or under 'model'), got {type(content).__name__}")
    return content, {}, arguments


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _told_by_content(tensors: Mapping[str, Tensor], trained: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The release's constructor arguments, from shapes of tensors and the arguments of its training script."""
    needed = ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(
            f"{path} is neither a checkpoint of ours nor of CrossMAE's or MAE's release: "
            f"it has no {', '.join(missing)} among its {len(tensors)} tensors"
        )
    width, decoder_width = tensors["cls_token"].shape[-1], tensors["mask_token"].shape[-1]
    channels, patch_size = tensors["patch_embed.proj.weight"].shape[1:3]
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    told = {
        "img_size": trained.get("input_size", side * patch_size),
        "patch_size": patch_size,
        "in_chans": channels,
        "embed_dim": width,
        "depth": _blocks(tensors, "blocks"),
        "decoder_embed_dim": decoder_width,
        "decoder_depth": _blocks(tensors, "decoder_blocks"),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "weight_fm": "wfm.linear.weight" in tensors,
        "self_attn": "decoder_blocks.0.self_attn.qkv.weight" in tensors,
    }
    told.update({name: trained[name] for name in ("norm_pix_loss", "use_fm", "use_input") if name in trained})
    if "use_input" not in trained and told["weight_fm"]:
        # Only the whole set is unambiguous without the training arguments: every block, with or without the input.
        told["use_input"] = tensors["wfm.linear.weight"].shape[1] == told["depth"] + 1
    if (width, decoder_width) in _RELEASED_HEADS:
        told["num_heads"], told["decoder_num_heads"] = _RELEASED_HEADS[width, decoder_width]
    return told


def _blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered blocks under a prefix."""
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")})


def _resized(model: MaskedAutoencoder, image_size: tuple[int, int]) -> MaskedAutoencoder:
    """The same weights for another image size, positions interpolated."""
    config = replace(model.config, image_size=image_size)
    state = model.state_dict()
    for name in ("encoder.positions", "decoder.positions"):
        state[name] = interpolate_positions(state[name], model.config.grid, config.grid)
    resized = MaskedAutoencoder(config)
    resized.load_state_dict(state)
    return resized
