"""Infer the structure of a model with the releases' names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from crossmae.acceleration.layers import CROSS_ATTENTION, SELF_ATTENTION, CrossAttentionLayers, SelfAttentionLayers
from crossmae.acceleration.obstacles import WRAPPED, Roles, listed, mixing_obstacles, obstacles, unwrapped

BLOCKS = ("blocks", "decoder_blocks")
TABLES = ("cls_token", "mask_token", "pos_embed", "decoder_pos_embed")


@dataclass(frozen=True)
class Structure:
    """The settings with which a model uses its tensors.

    ``maps`` are the encoder feature maps that CrossMAE's decoder blocks mix: 0 for the encoder's input, i for the
    output of its i-th block; None for MAE.
    """

    image_size: tuple[int, int]
    patch_size: int
    channels: int
    heads: int
    decoder_heads: int
    normalize_targets: bool
    maps: tuple[int, ...] | None
    decoder_self_attention: bool

    @property
    def patches(self) -> int:
        """The number of patches in an image."""
        return (self.image_size[0] // self.patch_size) * (self.image_size[1] // self.patch_size)

    @property
    def decoder_block(self) -> SelfAttentionLayers | CrossAttentionLayers:
        """The paths of a decoder block's layers."""
        if self.maps is None:
            return SELF_ATTENTION
        return replace(CROSS_ATTENTION, attends_to_itself=self.decoder_self_attention)

    def outside_of_blocks(self, decoder_depth: int) -> Roles:
        """Roles of the model's submodules outside its blocks."""
        roles: dict[str, type[nn.Module] | None] = {"patch_embed": None, "patch_embed.proj": nn.Conv2d}
        if self.maps is None:
            roles |= {"norm": nn.LayerNorm, "decoder_embed": nn.Linear}
        else:
            roles |= {"wfm": None, "wfm.linear": nn.Linear, "dec_norms": None}
            roles |= {f"dec_norms.{index}": nn.LayerNorm for index in range(decoder_depth)}
        return {**roles, "decoder_norm": nn.LayerNorm, "decoder_pred": nn.Linear}


def blocks_of(model: nn.Module, path: str) -> list[nn.Module]:
    """The encoder's or decoder's blocks, without wrappers; a block used in two places is listed twice."""
    return [unwrapped(block) for block in model.get_submodule(path)._modules.values() if block is not None]


def read_structure(model: nn.Module, given: Mapping[str, Any]) -> Structure:
    """Infer the structure of a model.

    Args:
        model: with a release's names.
        given: constructor arguments of the release, for what the model does not show.

    Raises:
        ValueError: naming everything that is missing, unknown, or given differently from the model.
    """
    require_names(model)
    encoder, decoder = (blocks_of(model, path) for path in BLOCKS)
    is_mae, attends_to_itself = hasattr(model, "decoder_embed"), hasattr(decoder[0], "self_attn")
    attentions = ("attn",) if is_mae else ("cross_attn", "self_attn")[: 1 + attends_to_itself]
    projection: Any = model.get_submodule("patch_embed.proj")
    # Sizes come from layers' attributes: reading a parametrized weight would compute it.
    fc1: Any = encoder[0].get_submodule("mlp.fc1")
    tokens: Any = model.mask_token
    numbers = _Numbers(given)
    patch_size = numbers.settle("patch_size", tuple(projection.kernel_size), "patch_embed.proj", _single)
    structure = Structure(
        image_size=numbers.settle("img_size", _image_size(model, patch_size), "patch_embed.img_size", _pair),
        patch_size=patch_size,
        channels=numbers.settle("in_chans", projection.in_channels, "patch_embed.proj"),
        heads=numbers.settle("num_heads", _heads(encoder, "attn"), "blocks.*.attn.num_heads"),
        decoder_heads=numbers.settle(
            "decoder_num_heads", _heads(decoder, *attentions), f"decoder_blocks.*.{attentions[0]}.num_heads"
        ),
        normalize_targets=numbers.settle("norm_pix_loss", getattr(model, "norm_pix_loss", None), "norm_pix_loss", bool),
        maps=None if is_mae else _maps(model, len(encoder), numbers),
        decoder_self_attention=numbers.settle("self_attn", attends_to_itself, "decoder_blocks.0", bool),
    )
    for name, told, where in (
        ("weight_fm", not is_mae, "wfm"),
        ("depth", len(encoder), "blocks"),
        ("decoder_depth", len(decoder), "decoder_blocks"),
        ("embed_dim", fc1.in_features, "blocks.0.mlp.fc1"),
        ("decoder_embed_dim", tokens.shape[-1], "mask_token"),
        ("mlp_ratio", fc1.out_features / fc1.in_features, "blocks.0.mlp.fc1"),
    ):
        numbers.settle(name, told, where)
    problems = numbers.problems or [*_misfits(model, structure, len(decoder))]
    if problems:
        raise ValueError(f"accelerate: {type(model).__name__} is not supported: {listed(problems)}")
    return structure


def _misfits(model: Any, structure: Structure, decoder_depth: int) -> Iterator[str]:
    """Sizes of the model's tensors that contradict its structure."""
    for name in ("pos_embed", "decoder_pos_embed"):
        rows = getattr(model, name).shape[1]
        if rows != structure.patches + 1:
            yield (
                f"images of {structure.image_size} have {structure.patches} patches, but {name} has {rows} rows, "
                f"not {structure.patches + 1}"
            )
    if structure.maps is not None:
        norms, mixes = len(model.dec_norms), model.wfm.linear.out_features
        if not decoder_depth == norms == mixes:
            blocks = f"{decoder_depth} block{'s' * (decoder_depth != 1)}"
            yield f"decoder_blocks has {blocks}, but dec_norms {norms} norms and wfm.linear {mixes} mixes"


class _Numbers:
    """Settings from the model or the caller; ``problems`` lists those that differ or that neither gives."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.problems: list[str] = []

    def settle(self, name: str, told: Any, where: str, canonical: Callable[[Any], Any] = lambda value: value) -> Any:
        """The model's own value, found ``where``, or else the caller's."""
        given = canonical(self.given[name]) if name in self.given else None
        told = None if told is None else canonical(told)
        if told is None and given is None:
            self.problems.append(f"the model does not show {name} ({where}), pass {name}=")
            return canonical(1)
        if told is not None and given is not None and told != given:
            self.problems.append(f"{name}={given!r} was given, but the model has {told!r} ({where})")
        return given if told is None else told


def has_release_blocks(model: nn.Module) -> bool:
    """Whether the encoder's and decoder's blocks are where a release's model has them."""
    return all(path in model._modules for path in BLOCKS)


def require_unwrapped(model: nn.Module) -> None:
    """Raise ValueError if a model is in one of the usual wrappers."""
    for name in ("module", *WRAPPED):
        if name in model._modules:
            kind = type(model).__name__
            raise ValueError(f"accelerate: pass the model before wrapping it, got {kind}, which holds it as {name}")


def require_names(model: nn.Module) -> None:
    """Raise ValueError unless a model has a release's names."""
    needed = [*TABLES, "patch_embed.proj", "decoder_norm", "decoder_pred"]
    needed += ["blocks.0.attn.proj", "blocks.0.mlp.fc1", "decoder_blocks.0.mlp.fc1"]
    if hasattr(model, "decoder_embed"):
        needed += ["norm", "decoder_blocks.0.attn.proj"]
    else:
        needed += ["wfm.linear", "dec_norms.0", "decoder_blocks.0.cross_attn.proj"]
    missing = [name for name in needed if not _has(model, name)]
    if missing:
        blocks = "" if has_release_blocks(model) else ", and has no known transformer block"
        raise ValueError(
            f"accelerate: {type(model).__name__} is not a CrossMAE or MAE with the releases' names{blocks}: "
            f"it has no {listed(missing)}"
        )


def _has(model: nn.Module, path: str) -> bool:
    found: Any = model
    for name in path.split("."):
        found = getattr(unwrapped(found), name, None)
        if found is None:
            return False
    return True


def _single(size: Any) -> int:
    """A patch size that may be given as a pair."""
    height, width = _pair(size)
    if height != width:
        raise ValueError(f"accelerate: patches must be square, got {height} x {width}")
    return height


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, tuple | list) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ValueError(f"accelerate: a size must be one number or two, got {size!r}")


def _image_size(model: nn.Module, patch_size: int) -> Any:
    embedding = model.get_submodule("patch_embed")
    size, grid = getattr(embedding, "img_size", None), getattr(embedding, "grid_size", None)
    return size if size is not None or grid is None else tuple(patch_size * count for count in _pair(grid))


def _heads(blocks: list[nn.Module], *attentions: str) -> Any:
    """The number of heads, which must be equal in all blocks; None if they do not store it."""
    heads = {getattr(getattr(block, name, None), "num_heads", None) for block in blocks for name in attentions}
    if len(heads) > 1:
        raise ValueError(f"accelerate: {attentions[0]}.num_heads must be the same in all blocks, got {heads}")
    return heads.pop()


def _maps(model: nn.Module, depth: int, numbers: _Numbers) -> tuple[int, ...]:
    """The release's ``use_fm`` (block indices, from the end if negative) and ``use_input``.

    Its default, a single -1, means every block; the columns of the mixing weights tell it from the last block. If
    neither model nor caller says, the columns can only show all blocks, with or without the encoder's input.
    """
    mixing: Any = model.get_submodule("wfm.linear")
    columns = mixing.in_features

    def resolved(use_fm: Any) -> tuple[int, ...]:
        every = list(use_fm) == [-1] and columns > 1 + use_input
        return tuple(range(depth)) if every else tuple(sorted({int(block) % depth for block in use_fm}))

    told = getattr(model, "use_input", None)
    if told is None and "use_input" not in numbers.given and columns == depth + 1:
        told = True
    use_input = numbers.settle("use_input", told, "use_input", bool)
    told = getattr(model, "use_fm", None)
    if told is None and "use_fm" not in numbers.given and columns == depth + use_input:
        told = [-1]
    if told is None and "use_fm" not in numbers.given:
        numbers.settle("use_fm", None, "use_fm")
        return ()
    blocks = numbers.settle("use_fm", told, "use_fm", resolved)
    if len(blocks) + use_input != columns:
        numbers.problems.append(
            f"use_fm={list(blocks)} and use_input={use_input} are {len(blocks) + use_input} maps, "
            f"but wfm.linear mixes {columns}"
        )
    return (0,) * use_input + tuple(block + 1 for block in blocks)


def require_no_obstacles(model: nn.Module, structure: Structure) -> None:
    """Raise ValueError, with the first five reasons, if fused operations cannot stand in for the model's layers."""
    encoder, decoder = (blocks_of(model, path) for path in BLOCKS)
    problems = [*_all_obstacles(model, structure, encoder, decoder)]
    if problems:
        raise ValueError(f"accelerate: {type(model).__name__} is not supported: {listed(problems)}")


def _all_obstacles(
    model: nn.Module, structure: Structure, encoder: list[nn.Module], decoder: list[nn.Module]
) -> Iterator[str]:
    if "forward" in model.__dict__:
        yield "this instance of the model has its own forward"
    yield from obstacles(model, structure.outside_of_blocks(len(decoder)), {}, called=BLOCKS)
    for name in {**model._parameters, **model._buffers}:
        if name not in TABLES:
            yield f"{name} is an unknown tensor"
    for path, blocks, roles in zip(
        BLOCKS, (encoder, decoder), (SELF_ATTENTION.roles, structure.decoder_block.roles), strict=True
    ):
        for index, block in enumerate(blocks):
            name = f"{path}.{index}"
            yield from (f"{name} has an unknown parameter, {own}" for own in block._parameters)
            if "forward" in block.__dict__:
                yield f"{name} has a forward of its own"
            yield from obstacles(block, roles, {}, f"{name}.")
    if structure.maps is not None:
        yield from mixing_obstacles("dec_norms", list(model.get_submodule("dec_norms").children()))
