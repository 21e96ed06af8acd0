"""Encoder transfer: from our models to any vision transformer, and from any checkpoint into our models."""

import os
import warnings
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from crossmae.checkpoint import huggingface
from crossmae.checkpoint.configuration import Told, named_as_released, on_top
from crossmae.checkpoint.filling import filled, misfits
from crossmae.checkpoint.loading import CheckpointWarning, own_config
from crossmae.checkpoint.messages import first_few
from crossmae.checkpoint.reading import find, read
from crossmae.checkpoint.release import release_name, to_release
from crossmae.checkpoint.saving import CONFIG_KEY
from crossmae.checkpoint.shapes import OF_A_DECODER, told_by_tensors
from crossmae.checkpoint.wrappers import find_state_dict
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.encoder import Encoder
from crossmae.model.positions import interpolate_positions
from crossmae.model.values import pair

# Fields that the shapes of tensors determine.
_SIZES = ("encoder_width", "encoder_depth", "patch_size", "channels", "class_tokens", "mlp_ratio")
# Fields that change features but that no tensor determines, beside the grid.
_BESIDE = ("encoder_heads", "norm_eps")


def encoder_tensors(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """A model's encoder under the releases' names, with a position embedding for every token, as any ViT expects.

    CrossMAE adds none to its class tokens, so their rows are zero here.
    """
    tensors = to_release({name: t for name, t in model.state_dict().items() if name.startswith("encoder.")})
    if not model.config.embeds_class:
        tensors["pos_embed"] = _without_class_rows(tensors["pos_embed"], model.config.class_tokens)
    return tensors


def load_encoder(model: MaskedAutoencoder, path: str | os.PathLike[str], key: str | None = None) -> None:
    """Load a checkpoint's encoder into a model, to continue training from it; the model's decoder is unchanged.

    Args:
        model: keeps its dtype and device. Position embeddings of another grid are interpolated to its image size. A
            CrossMAE adds no position to its class tokens, so the checkpoint's are added to the tokens themselves.
        path: any checkpoint that ``load`` reads, with or without a decoder.
        key: where in the file the weights are; see ``load``.

    Warns:
        CheckpointWarning: once, listing everything left out (heads; a final norm if the model has none), interpolated
            or assumed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a checkpoint, or its encoder differs from the model's in width, depth, heads,
            patch size, channels or epsilon; names the first tensors that do not fit. The model is then unchanged.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise TypeError(f"load_encoder fills models of this package, got {type(model).__name__}; see crossmae.export")
    start = starting_encoder(model.config, path, key)
    if start.notes:
        warnings.warn(start.said, CheckpointWarning, stacklevel=2)
    start.put_into(model)


@dataclass(frozen=True)
class StartingEncoder:
    """A checkpoint's encoder converted for a model, under the names of the model's encoder, with notes for the user."""

    file: Path
    tensors: dict[str, Tensor]
    notes: list[str]

    @property
    def said(self) -> str:
        """The file, and any notes."""
        return f"{self.file}: {'; '.join(self.notes)}" if self.notes else str(self.file)

    def put_into(self, model: MaskedAutoencoder) -> None:
        """Copy into a model of the configuration it was read for."""
        model.encoder.load_state_dict(self.tensors, strict=False)  # a norm missing from the checkpoint is kept


def starting_encoder(config: Config, path: str | os.PathLike[str], key: str | None = None) -> StartingEncoder:
    """Read what ``load_encoder`` copies into a model of this configuration; raises the same errors."""
    file = find(path)
    tensors, told, said = _read_encoder(file, key)
    with torch.device("meta"):
        encoder = Encoder(config).state_dict()
    names = {release_name(f"encoder.{name}"): name for name in encoder}
    _agree_on_the_norm(tensors, names, said)
    expected = {theirs: tuple(encoder[ours].shape) for theirs, ours in names.items()}
    rows = tensors["pos_embed"].shape[1]  # interpolated below, if the grid differs
    expected["pos_embed"] = (1, rows, config.encoder_width)
    if wrong := misfits(expected, tensors):
        sizes = [(name, told[name], getattr(config, name)) for name in _SIZES if told[name] != getattr(config, name)]
        why = f" ({', '.join(f'{name} {theirs}, here {ours}' for name, theirs, ours in sizes)})" if sizes else ""
        raise ValueError(f"{file} does not fit the model's encoder{why}: {first_few(wrong, separator='; ')}")
    beside = {name: getattr(config, name) for name in _BESIDE}
    if missing := [f"{name}={value!r}" for name, value in beside.items() if name not in told]:
        said.append(f"not in the file, so taken from the model: {', '.join(missing)}")
    told.add("the model", beside)

    tensors = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in tensors.items()}
    tensors["pos_embed"] = _for_the_grid(tensors["pos_embed"], config, told.get("image_size"), file, said)
    if not config.embeds_class:
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, : config.class_tokens]
        tensors["pos_embed"] = _without_class_rows(tensors["pos_embed"], config.class_tokens)
    return StartingEncoder(file, {names[name]: tensor for name, tensor in tensors.items()}, said)


def _read_encoder(file: Path, key: str | None) -> tuple[dict[str, Tensor], Told, list[str]]:
    """An encoder's tensors named as by ``encoder_tensors``, the known fields of ``Config``, and notes for the user."""
    content, metadata = read(file)
    told = Told(file)
    if CONFIG_KEY in metadata:
        if key is not None:
            raise ValueError(f"{file} holds one model; remove key={key!r}")
        source = filled(own_config(metadata[CONFIG_KEY], file), content, str(file))
        of_ours = {name: getattr(source.config, name) for name in (*_SIZES, *_BESIDE, "image_size")}
        told.add("its configuration", of_ours)
        return encoder_tensors(source), told, []
    state, said = find_state_dict(content, file, key)
    named = named_as_released(state)
    left_out = on_top(named, said)
    named = {name: tensor for name, tensor in named.items() if name not in left_out}
    told.add("its tensors", told_by_tensors(named, file))
    if state.layout == "huggingface":
        told.add("its config.json", huggingface.told_by_config(file.parent, named) or {})
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith(OF_A_DECODER)}
    if told["decoder"] == "crossmae":  # as ``Config.embeds_class``
        tensors["pos_embed"] = _without_class_rows(tensors["pos_embed"], told["class_tokens"])
    return tensors, told, said


def _agree_on_the_norm(tensors: dict[str, Tensor], names: dict[str, str], said: list[str]) -> None:
    """Leave out a final norm that only the checkpoint or only the model has."""
    theirs, ours = ([name for name in of if name.startswith("norm.")] for of in (tensors, names))
    if theirs and not ours:
        said.append(f"left out, as the model has no final norm: {', '.join(theirs)}")
        for name in theirs:
            del tensors[name]
    elif ours and not theirs:
        said.append("it has no final norm, so the model's is kept")
        for name in ours:
            del names[name]


def _for_the_grid(
    positions: Tensor, config: Config, image_size: tuple[int, int] | None, file: Path, said: list[str]
) -> Tensor:
    """Position embeddings for a model's grid, from those for another image size or an unknown one."""
    patches, (height, width) = positions.shape[1] - config.class_tokens, pair(config.patch_size)
    if image_size is None:
        side = isqrt(patches)
        if patches == config.patches:
            image_size = config.image_size
        elif side**2 == patches:
            image_size = (side * height, side * width)
        else:
            raise ValueError(
                f"{file} does not say how its {patches} patches are arranged (or its {positions.shape[1]} position "
                "embeddings have no row for the class token, which is not supported); crossmae.load it with "
                "img_size=(height, width), crossmae.save it and start from that"
            )
        said.append(f"not in the file, so assumed: image_size={image_size}")
    grid = image_size[0] // height, image_size[1] // width
    if grid[0] * grid[1] != patches:
        raise ValueError(
            f"{file} has position embeddings for {patches} patches, but {grid[0]} x {grid[1]} patches by its image size"
        )
    if grid == config.grid:
        return positions
    said.append(f"position embeddings are interpolated from image size {image_size} to {config.image_size}")
    return interpolate_positions(positions, grid, config.grid, config.class_tokens)


def _without_class_rows(positions: Tensor, class_tokens: int) -> Tensor:
    return torch.cat([torch.zeros_like(positions[:, :class_tokens]), positions[:, class_tokens:]], dim=1)
