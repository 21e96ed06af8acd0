"""What a configuration takes in each of its fields."""

import json
import math
import re

import numpy as np
import pytest

import crossmae
from crossmae.model.config import Config

FIELDS = {
    "image_size": (224, None, "224", (224,), (224, 224, 3), (224.0, 224), [224, 224], (True, 224)),
    **dict.fromkeys(("patch_size", "channels", "class_tokens"), (3.0, "3", True, None, (3,))),
    **dict.fromkeys((f"{part}_{of}" for part in ("encoder", "decoder") for of in ("width", "depth", "heads")), (True,)),
    "decoder": ("MAE", True, ("mae",), ["mae"]),
    **dict.fromkeys(("mlp_ratio", "norm_eps", "drop_path"), ("0.5", None, True, 0.5j, (0.5,))),
    "feature_maps": (1, "1", (1.0,), (True,), [1], {1}),
    **dict.fromkeys(
        ("decoder_self_attention", "normalize_targets", "gradient_checkpointing"), ("False", 0, 1, None, np.bool_(True))
    ),
    **dict.fromkeys(("pixel_mean", "pixel_std"), (0.5, "0.5", ("0.5",) * 3, (None,) * 3, [0.5] * 3)),
    "decoder_norm_eps": ("0.5", True, 0.5j, (0.5,)),
    **dict.fromkeys(("no_embed_class", "final_norm"), ("False", 0, 1)),
    **dict.fromkeys(("pos_embed", "decoder_pos_embed"), (None, "learned", True)),
    **dict.fromkeys(("last_mix_norm", "decoder_class_token"), ("False", 0, None)),
    "pixel_order": ("HWC", None),
    "pixel_numbers": ("Values", 1, False),
    "pixel_nodata": ("0", True, "NaN", (0,)),
    "hidden_layer": (None, True, "Save"),
    "residual": (None, False, "bfloat16"),
}


def test_every_field_is_listed():
    assert FIELDS.keys() == Config.__dataclass_fields__.keys()


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_values_of_another_type_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^Config: {field} must be .*, got {re.escape(repr(value))}$"):
        Config(**{field: value})


def test_all_wrong_fields_are_named_with_what_they_must_be():
    message = (
        "Config: image_size must be (height, width), 2 integers, got 'big'; "
        "encoder_heads must be an integer, got True; "
        "decoder must be 'crossmae', 'mae' or None, got 'MAE'; norm_eps must be a number, got '1e-6'; "
        "feature_maps must be a tuple of integers or None, got 5; normalize_targets must be True or False, got 'No'; "
        "pixel_nodata must be a number, 'nan' or None, got 'none'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(
            image_size="big", encoder_heads=True, decoder="MAE", norm_eps="1e-6", feature_maps=5,
            normalize_targets="No", pixel_nodata="none",
        )  # fmt: skip


@pytest.mark.parametrize("field", ["mlp_ratio", "norm_eps", "decoder_norm_eps", "drop_path", "pixel_mean", "pixel_std"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(field, value):
    statistics = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3}
    values = {**statistics, field: (0.5, value, 0.5) if field in statistics else value}
    with pytest.raises(ValueError, match=f"Config: {field} must be "):
        Config(**values)


def test_integers_are_numbers_and_lists_are_tuples_in_files():
    config = Config(mlp_ratio=4, drop_path=0, pixel_mean=(0, 0.5, np.float64(1)), pixel_std=(1, 1, 1), pixel_nodata=0)
    assert Config.from_dict({**config.to_dict(), "image_size": [224, 224], "feature_maps": [0, 1]}).feature_maps == (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": (16, 15)}, "patch_size must divide image_size (224, 224), got (16, 15)"),
        ({"patch_size": (16, 0)}, "patch_size must be positive, got (16, 0)"),
        ({"class_tokens": -1}, "class_tokens must not be negative, got -1"),
        ({"class_tokens": 0, "no_embed_class": True}, "no_embed_class needs class_tokens, got 0"),
        ({"decoder_norm_eps": 0.0}, "decoder_norm_eps must be positive, got 0.0"),
        ({"last_mix_norm": False, "decoder": "mae"}, "last_mix_norm=False needs mixing"),
        ({"last_mix_norm": False}, "last_mix_norm=False needs mixing: decoder='crossmae' and feature_maps"),
        ({"final_norm": True, "feature_maps": (0, 3)}, "final_norm=True norms map 12, which feature_maps (0, 3) leave"),
        ({"decoder_class_token": False}, "decoder_class_token=False belongs to decoder='mae', got decoder='crossmae'"),
    ],
)
def test_what_would_change_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**values)


def test_configurations_written_before_a_field_was_there_are_what_they_were():
    later = ("decoder_norm_eps", "class_tokens", "no_embed_class", "pos_embed", "decoder_pos_embed", "final_norm",
             "last_mix_norm", "decoder_class_token", "pixel_order")  # fmt: skip
    config = Config(norm_eps=1e-12, decoder="mae")
    written = {name: value for name, value in config.to_dict().items() if name not in later}
    read = Config.from_dict(json.loads(json.dumps(written)))
    assert read == config
    assert (read.decoder_eps, read.embeds_class, read.norms_last_map) == (1e-12, True, True)
    rectangular = Config(patch_size=(16, 2))
    assert Config.from_dict(json.loads(json.dumps(rectangular.to_dict()))) == rectangular


@pytest.mark.parametrize("size", ["big", 32.0, (32,), True])
def test_sizes_of_named_models(size):
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\), 2 integers, got"):
        crossmae.create_model("mae_vit_tiny_patch4", size)
