"""The configuration of a model, and the named models."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, get_args, get_type_hints

from crossmae.model.values import as_tuple, expected_instead, pair

Decoder = Literal["crossmae", "mae"]
Residual = Literal["float32", "autocast"]
Hidden = Literal["recompute", "save"]
Numbers = Literal["shares", "values"]
Positions = Literal["sincos", "learn"]
PixelOrder = Literal["hwc", "chw"]


@dataclass(frozen=True)
class Config:
    """The configuration of a masked autoencoder. Sizes are in pixels, channels or counts.

    ``patch_size`` is the side of a square, or height and width: spectrogram models have patches as high as the image
    (SSAST: 128 x 2), and a signal is an image with one row.

    ``feature_maps`` selects what CrossMAE's decoder blocks attend to: indices of encoder feature maps, 0 for the
    encoder's input and i for the output of its i-th block. Every decoder block learns its own mix of them
    (inter-block attention). None means no inter-block attention: all blocks attend to the normalised output of the last
    encoder block, as MAE's decoder always does.

    ``decoder`` None means an encoder alone, as many are published: it has ``encode`` and cannot train or reconstruct.
    It has a final norm unless ``feature_maps`` are given, as with a decoder. ``norm_eps`` applies to all LayerNorms,
    1e-6 in MAE and CrossMAE.

    The second group covers differences in other models of this kind:

    - ``decoder_norm_eps``: the decoder's own epsilon, including that of mixing (stable-pretraining: 1e-5, and 1e-6 in
      the encoder); None: ``norm_eps``.
    - ``class_tokens``: how many precede the patches; 8 in Pixio, none in ViTs with pooling.
    - ``no_embed_class``: whether class tokens get no position embedding (timm's name). None: as in the releases, where
      MAE's gets one and CrossMAE's does not; birder's CrossMAE adds one (False).
    - ``pos_embed`` and ``decoder_pos_embed``: "sincos", fixed, or "learn", parameters, as in Pixio on both sides and
      in timm's and birder's encoders.
    - ``final_norm``: whether a LayerNorm follows the last encoder block (timm's name). None: yes, unless maps are
      mixed. birder's CrossMAE norms only its last map before mixing (True).
    - ``last_mix_norm``: False leaves out the norm on the last decoder block's mix, as in birder.
    - ``decoder_class_token``: False keeps class tokens out of MAE's decoder, as in stable-pretraining's MAE.
    - ``pixel_order``: order of values in a predicted patch, (row, column, channel) in the releases, "chw" in
      stable-pretraining.

    ``pixel_mean`` and ``pixel_std``, one value per channel, normalise the model's images: uint8 images as
    ``(pixel / 255 - mean) / std``. With them, the model takes raw uint8 images; with None, it takes floating-point
    images that are already normalised.
    ``pixel_numbers`` and ``pixel_nodata`` say what the image files held: "shares" of full scale or raw "values", and
    the value that marked missing data ("nan": only non-finite values). None: unknown.

    The last fields say how a model runs and do not change its parameters: ``drop_path`` is the rate of stochastic depth
    (arXiv 1603.09382) in training, rising linearly from 0 to this value along the encoder; ``gradient_checkpointing``
    recomputes blocks in the backward pass instead of saving what they need; ``hidden_layer`` is that choice for the
    MLPs' hidden layers alone, with kernels; ``residual`` is the dtype of the residual under autocast, float32 (sums of
    dozens of branches lose nothing) or autocast's own.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int | tuple[int, int] = 16
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

    decoder_norm_eps: float | None = None
    class_tokens: int = 1
    no_embed_class: bool | None = None
    pos_embed: Positions = "sincos"
    decoder_pos_embed: Positions = "sincos"
    final_norm: bool | None = None
    last_mix_norm: bool = True
    decoder_class_token: bool = True
    pixel_order: PixelOrder = "hwc"

    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    pixel_numbers: Numbers | None = None
    pixel_nodata: float | Literal["nan"] | None = None

    drop_path: float = 0.0
    gradient_checkpointing: bool = False
    hidden_layer: Hidden = "recompute"
    residual: Residual = "float32"

    def __post_init__(self) -> None:
        """Refuse invalid configurations, naming every wrong field."""
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
        """Fields of the right type with invalid values."""
        wrong = [
            f"{name} must be a positive integer, got {getattr(self, name)}"
            for name in (
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
        for name in ("image_size", "patch_size"):
            if min(pair(getattr(self, name))) < 1:
                wrong.append(f"{name} must be positive, got {getattr(self, name)}")
        if self.class_tokens < 0:
            wrong.append(f"class_tokens must not be negative, got {self.class_tokens}")
        if not 0 <= self.drop_path < 1:
            wrong.append(f"drop_path must be in [0, 1), got {self.drop_path}")
        for name in ("mlp_ratio", "norm_eps", "decoder_norm_eps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                wrong.append(f"{name} must be positive, got {getattr(self, name)}")
        for part in ("encoder", "decoder"):
            width = getattr(self, f"{part}_width")
            if isfinite(self.mlp_ratio) and self.mlp_ratio > 0 and int(width * self.mlp_ratio) < 1 <= width:
                wrong.append(f"mlp_ratio {self.mlp_ratio} leaves nothing of {part}_width {width}")
        for name in ("pixel_mean", "pixel_std"):
            if not all(map(isfinite, getattr(self, name) or ())):
                wrong.append(f"{name} must be finite, got {getattr(self, name)}")
        return wrong

    def _misfits(self) -> list[str]:
        """Fields that are valid alone but do not fit together."""
        wrong = []
        if any(size % side for size, side in zip(self.image_size, pair(self.patch_size), strict=True)):
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
        return wrong + self._misfits_of_variants()

    def _misfits_of_variants(self) -> list[str]:
        """Fields of the second group that would have no effect. Without a decoder, its fields and sizes are ignored."""
        wrong = []
        maps, mixes = self.feature_maps, self.decoder == "crossmae" and self.feature_maps is not None
        if not self.last_mix_norm and self.decoder is not None and not mixes:
            wrong.append("last_mix_norm=False needs mixing: decoder='crossmae' and feature_maps")
        if self.final_norm and mixes and self.encoder_depth not in (maps or ()):
            wrong.append(f"final_norm=True norms map {self.encoder_depth}, which feature_maps {maps} leave out")
        if not self.decoder_class_token and self.decoder == "crossmae":
            wrong.append("decoder_class_token=False belongs to decoder='mae', got decoder='crossmae'")
        if self.no_embed_class is not None and not self.class_tokens:
            wrong.append(f"no_embed_class needs class_tokens, got {self.class_tokens}")
        return wrong

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = pair(self.patch_size)
        return self.image_size[0] // height, self.image_size[1] // width

    @property
    def patches(self) -> int:
        """Number of patches in an image, L."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Number of values in a patch, P."""
        height, width = pair(self.patch_size)
        return int(height * width) * self.channels

    @property
    def embeds_class(self) -> bool:
        """Whether class tokens get positions in the encoder, see ``no_embed_class``."""
        # CrossMAE's release adds none to the class token; MAE and plain ViTs do.
        return self.decoder != "crossmae" if self.no_embed_class is None else not self.no_embed_class

    @property
    def norms_last_map(self) -> bool:
        """Whether a norm follows the last encoder block, see ``final_norm``."""
        # With inter-block attention every decoder block norms its own mix of maps.
        return self.feature_maps is None if self.final_norm is None else self.final_norm

    @property
    def decoder_eps(self) -> float:
        """Epsilon of the decoder's LayerNorms."""
        return self.norm_eps if self.decoder_norm_eps is None else self.decoder_norm_eps

    @property
    def decoder_class_tokens(self) -> int:
        """Number of class tokens that the decoder attends to."""
        return self.class_tokens if self.decoder_class_token else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, suitable for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of ``to_dict``, also after a JSON round trip."""
        tuples = ("image_size", "patch_size", "feature_maps", "pixel_mean", "pixel_std")
        return cls(**{name: as_tuple(value) if name in tuples else value for name, value in values.items()})


@cache
def field_types() -> dict[str, Any]:
    """The annotated type of each field of ``Config``."""
    return get_type_hints(Config)


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
# MAE's paper uses 8 decoder blocks; the tiny model has the same depth in both families.
_MAE_DECODER_DEPTH = 8


def list_models() -> list[str]:
    """The names that ``create_model`` accepts."""
    return [f"{family}_vit_{size}" for family in get_args(Decoder) for size in _ENCODERS]


def named_config(name: str, image_size: int | Sequence[int] | None = None, **overrides: Any) -> Config:
    """The configuration of a named model.

    Args:
        name: one of ``list_models()``.
        image_size: side of a square, or (height, width); by default the model's own (224; tiny: 32).
        overrides: any other field of ``Config``.

    A CrossMAE mixes all encoder feature maps, the encoder's input included, unless ``feature_maps`` says otherwise.
    """
    family, _, size = name.partition("_vit_")
    if family not in get_args(Decoder) or size not in _ENCODERS:
        raise ValueError(f"there is no model {name!r}; choose from {', '.join(list_models())}")
    unknown = sorted(set(overrides) - set(Config.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such setting; choose from {', '.join(Config.__dataclass_fields__)}")
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


def crossmae_and_mae(name: str, image_size: int | Sequence[int] | None = None) -> tuple[Config, Config]:
    """Configurations of a named CrossMAE and of the MAE of the same size, with which it is compared.

    Raises:
        ValueError: for another model's name.
    """
    family, _, size = name.partition("_vit_")
    if family == "mae":
        raise ValueError(f"model must be a CrossMAE, to be compared with its MAE: crossmae_vit_{size}, got {name}")
    return named_config(name, image_size), named_config(f"mae_vit_{size}", image_size)


def usual_prediction_ratio(config: Config, mask_ratio: float) -> float:
    """The share of all patches that a model predicts where nothing else is said: MAE all masked ones, CrossMAE 0.25."""
    return mask_ratio if config.decoder == "mae" else min(0.25, mask_ratio)


def usual_heads(part: Literal["encoder", "decoder"], width: int) -> int | None:
    """Attention heads of the named (and so of the published) model with this width; None if there is none."""
    for size in _ENCODERS:
        config = named_config(f"mae_vit_{size}")
        if getattr(config, f"{part}_width") == width:
            return int(getattr(config, f"{part}_heads"))
    return None
