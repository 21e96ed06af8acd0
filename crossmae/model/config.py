"""The configuration of a model, and the named models."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import isfinite
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Decoder = Literal["crossmae", "mae"]
Residual = Literal["float32", "autocast"]
Hidden = Literal["recompute", "save"]
Numbers = Literal["shares", "values"]


@dataclass(frozen=True)
class Config:
    """Shape of a masked autoencoder. All sizes in pixels, channels or counts.

    ``feature_maps`` chooses what the decoder blocks of CrossMAE attend to: indices of encoder feature maps, 0 for the
    encoder's input and i for the output of its i-th block. Every decoder block learns its own mix of them
    (inter-block attention). None means no inter-block attention: all attend to the normalised output of the last
    encoder block. MAE's decoder always uses that one.

    ``decoder`` None is an encoder alone, as many are published: it has ``encode`` and nothing to train or reconstruct
    with. Its last norm is there unless ``feature_maps`` are named, as with a decoder. ``norm_eps`` is that of all
    LayerNorms, 1e-6 in MAE and CrossMAE.

    ``pixel_mean`` and ``pixel_std``, one value per channel, are what the model's images are normalised with: uint8
    images as ``(pixel / 255 - mean) / std``. A model that has them takes uint8 images as they are. None: it takes
    floating-point images that were normalised before.
    ``pixel_numbers`` and ``pixel_nodata`` say what image files held: "shares" of full scale or "values" taken as they
    are, and the value that stood for no data ("nan": none but those that are not finite). None: unknown.

    The last fields say how a model runs and do not change its parameters: ``drop_path`` is the rate, rising to
    this from 0 along the encoder's depth, at which an image skips a residual branch while training (stochastic depth,
    arXiv 1603.09382); ``gradient_checkpointing`` computes blocks again in the backward pass instead of keeping what
    they need; ``hidden_layer`` is that choice for the MLPs' hidden layers alone, with kernels; ``residual`` is the
    dtype of the residual under autocast, float32 (sums of dozens of branches lose nothing) or autocast's own.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    decoder: Decoder | None = "crossmae"
    decoder_width: int = 512
    decoder_depth: int = 12
    decoder_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    feature_maps: tuple[int, ...] | None = None
    decoder_self_attention: bool = False
    normalize_targets: bool = True
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    pixel_numbers: Numbers | None = None
    pixel_nodata: float | Literal["nan"] | None = None
    drop_path: float = 0.0
    gradient_checkpointing: bool = False
    hidden_layer: Hidden = "recompute"
    residual: Residual = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming every wrong field."""
        wrong = [
            f"{name} must be {expected}, got {getattr(self, name)!r}"
            for name, kind in field_types().items()
            if (expected := expected_instead(getattr(self, name), kind))
        ]
        if not wrong:
            wrong = self._out_of_range()
        if not wrong:
            wrong += self._misfits()
        if wrong:
            raise ValueError("Config: " + "; ".join(wrong))

    def _out_of_range(self) -> list[str]:
        """Fields that are wrong alone, of the right type."""
        wrong = [
            f"{name} must be a positive integer, got {getattr(self, name)}"
            for name in (
                "patch_size",
                "channels",
                "encoder_width",
                "encoder_depth",
                "encoder_heads",
                "decoder_width",
                "decoder_depth",
                "decoder_heads",
            )
            if getattr(self, name) < 1
        ]
        if min(self.image_size) < 1:
            wrong.append(f"image_size must be positive, got {self.image_size}")
        if not 0 <= self.drop_path < 1:
            wrong.append(f"drop_path must be in [0, 1), got {self.drop_path}")
        for name in ("mlp_ratio", "norm_eps"):
            if not (getattr(self, name) > 0 and isfinite(getattr(self, name))):
                wrong.append(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("pixel_mean", "pixel_std"):
            if not all(map(isfinite, getattr(self, name) or ())):
                wrong.append(f"{name} must be finite, got {getattr(self, name)}")
        return wrong

    def _misfits(self) -> list[str]:
        """Fields that are fine alone and do not fit each other."""
        wrong = []
        if any(size % self.patch_size for size in self.image_size):
            wrong.append(f"patch_size must divide image_size {self.image_size}, got {self.patch_size}")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                wrong.append(f"{part}_heads must divide {part}_width {width}, got {heads}")
            if width % 4:
                wrong.append(f"{part}_width must be a multiple of 4 (2-D sin-cos positions), got {width}")
        if self.feature_maps is not None:
            maps = self.feature_maps
            if not maps or list(maps) != sorted(set(maps)) or maps[0] < 0 or maps[-1] > self.encoder_depth:
                wrong.append(
                    "feature_maps must be ascending and distinct, at least one, "
                    f"each in [0, encoder_depth = {self.encoder_depth}], got {maps}"
                )
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                wrong.append(f"{name} must have one value for each of {self.channels} channels, got {values}")
        if (self.pixel_mean is None) != (self.pixel_std is None):
            wrong.append(f"pixel_mean and pixel_std come together, got {self.pixel_mean} and {self.pixel_std}")
        elif self.pixel_std is not None and min(self.pixel_std) <= 0:
            wrong.append(f"pixel_std must be positive, got {self.pixel_std}")
        if self.decoder == "mae" and (self.feature_maps is not None or self.decoder_self_attention):
            wrong.append("feature_maps and decoder_self_attention belong to decoder='crossmae', got decoder='mae'")
        return wrong

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image, L."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Values of a patch as a vector, P."""
        return self.patch_size * self.patch_size * self.channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of ``to_dict``, also after a trip through JSON."""
        tuples = ("image_size", "feature_maps", "pixel_mean", "pixel_std")
        return cls(**{name: as_tuple(value) if name in tuples else value for name, value in values.items()})


def as_tuple(value: Any) -> Any:
    """A sequence as a tuple; anything else unchanged."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def pair(size: Any) -> Any:
    """Height and width from either, or from the side of a square; what is neither stays, for ``Config`` to refuse."""
    return (size, size) if _is(size, int) else as_tuple(size)


@cache
def field_types() -> dict[str, Any]:
    """The annotated type of each field of ``Config``."""
    return get_type_hints(Config)


def expected_instead(value: object, kind: Any) -> str | None:
    """What an annotated type allows, in words, if the value is of another one."""
    if _is(value, kind):
        return None
    *words, last = _words(kind)
    return f"{', '.join(words)} or {last}" if words else last


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type. Integers are numbers, True and False are neither."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in inner
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    if inner:  # a union
        return any(_is(value, one) for one in inner)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> list[str]:
    """What an annotated type allows, one by one."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return [repr(value) for value in inner]
    if get_origin(kind) is tuple:
        of = "numbers" if inner[0] is float else "integers"
        return [f"a tuple of {of}" if inner[-1] is ... else f"(height, width), {len(inner)} {of}"]
    if inner:
        return [word for one in inner for word in _words(one)]
    return {int: ["an integer"], float: ["a number"], bool: ["True", "False"], NoneType: ["None"]}[kind]


_ENCODERS: dict[str, dict[str, Any]] = {
    "tiny_patch4": {
        "image_size": (32, 32),
        "patch_size": 4,
        "encoder_width": 96,
        "encoder_depth": 4,
        "encoder_heads": 3,
        "decoder_width": 64,
        "decoder_depth": 4,
        "decoder_heads": 4,
    },
    "small_patch16": {"encoder_width": 384, "encoder_heads": 6, "decoder_width": 256, "decoder_heads": 8},
    "base_patch16": {},
    "large_patch16": {"encoder_width": 1024, "encoder_depth": 24, "encoder_heads": 16},
    "huge_patch14": {"patch_size": 14, "encoder_width": 1280, "encoder_depth": 32, "encoder_heads": 16},
}
# MAE decodes with 8 blocks in its paper; the tiny model keeps its own depth in both families.
_MAE_DECODER_DEPTH = 8


def list_models() -> list[str]:
    """Names that ``create_model`` takes."""
    return [f"{family}_vit_{size}" for family in get_args(Decoder) for size in _ENCODERS]


def named_config(name: str, image_size: int | Sequence[int] | None = None, **overrides: Any) -> Config:
    """Configuration of a named model.

    Args:
        name: one of ``list_models()``.
        image_size: side of a square, or (height, width); the model's own (224; tiny: 32) unless given.
        overrides: any other field of ``Config``.

    A CrossMAE mixes all encoder feature maps, the encoder's input included, unless ``feature_maps`` says otherwise.
    """
    family, _, size = name.partition("_vit_")
    if family not in get_args(Decoder) or size not in _ENCODERS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(list_models())}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(Config.__dataclass_fields__)}")
    if overrides.get("decoder", family) != family:
        raise ValueError(f"the decoder of {name!r} is {family!r}; choose another model for {overrides['decoder']!r}")
    values: dict[str, Any] = {"decoder": family, **_ENCODERS[size]}
    if family == "mae":
        values.setdefault("decoder_depth", _MAE_DECODER_DEPTH)
    values.update(overrides)
    if image_size is not None:
        values["image_size"] = pair(image_size)
    if family == "crossmae" and "feature_maps" not in overrides:
        depth = values.get("encoder_depth", Config.encoder_depth)
        values["feature_maps"] = tuple(range(depth + 1))
    return Config.from_dict({"image_size": Config.image_size, **values})


def usual_heads(part: Literal["encoder", "decoder"], width: int) -> int | None:
    """Attention heads of the named model, and so of the published ones, of this width; None if none is so wide."""
    for size in _ENCODERS:
        config = named_config(f"mae_vit_{size}")
        if getattr(config, f"{part}_width") == width:
            return int(getattr(config, f"{part}_heads"))
    return None
