"""Shapes of the models whose parts are measured."""

from typing import Any

from benchmarks.contest import Form
from crossmae.masking import mask_counts
from crossmae.model.config import Config, named_config

MASK_RATIO = 0.75
PREDICTION_RATIO = 0.25
EPS = 1e-6


def config_of(form: Form, name: str, image_size: int | None = None, **overrides: Any) -> Config:
    """A named model's configuration; in the tiny form of a block on each side and 16 patches."""
    if form.name == "tiny":
        image_size, overrides = 16, {"encoder_depth": 1, "decoder_depth": 1}
    return named_config(name, image_size, **overrides)


def shape_of(form: Form, size: str, image_size: int | None = None) -> tuple[Config, int, int]:
    """Configuration of a CrossMAE, tokens of a feature map and predicted patches of an image."""
    config = named_config(f"crossmae_vit_{size}", 16 if form.name == "tiny" else image_size)
    visible, predicted = mask_counts(config.patches, MASK_RATIO, PREDICTION_RATIO)
    return config, visible + 1, predicted


def model_sizes(form: Form) -> tuple[str, ...]:
    """Whole models that are measured; on a CPU a step of a larger one takes seconds."""
    return ("small_patch16",) if form.name == "small" else form.sizes


def model_name(size: str) -> str:
    """``base_patch16`` -> ``ViT-B/16``."""
    scale, patch = size.split("_patch")
    return f"ViT-{'T' if scale == 'tiny' else scale[0].upper()}/{patch}"
