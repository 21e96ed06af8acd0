"""The layout of the CrossMAE and MAE releases: encoder and decoder."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from crossmae.checkpoint.release import FIELDS, to_release
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The state dict, the arguments of the release's constructor, and notes."""
    config = model.config
    maps = config.feature_maps
    notes.refuse("the release", _unlike_a_release(config))
    arguments = {name: getattr(config, field) for name, field in FIELDS.items()}
    arguments["img_size"] = config.image_size[0]
    said = [notes.images(config)]
    if "learn" in (config.pos_embed, config.decoder_pos_embed):
        said.append("the position embeddings were learned, but are fixed there")
    if config.decoder == "crossmae" and maps is not None:
        arguments |= {"weight_fm": True, "use_fm": [block - 1 for block in maps if block], "use_input": 0 in maps}
    else:
        del arguments["self_attn"]
    if config.decoder is None:
        arguments = {name: v for name, v in arguments.items() if "decoder" not in name and name != "norm_pix_loss"}
        said.append("it is an encoder without a decoder, as MAE's release publishes them")
    return to_release(model.state_dict()), arguments, said


def _unlike_a_release(config: Config) -> dict[str, bool]:
    """Settings that neither release can express, and whether the model has them."""
    usual = replace(config, no_embed_class=None, final_norm=None)
    eps = {config.norm_eps, config.norm_eps if config.decoder is None else config.decoder_eps}
    return {
        f"it needs square images, got {config.image_size}": len(set(config.image_size)) > 1,
        f"it needs square patches, got {config.patch_size}": not isinstance(config.patch_size, int),
        f"its LayerNorms need eps 1e-06, got {sorted(eps)}": eps != {notes.LAYER_NORM_EPS},
        f"it needs one class token, got {config.class_tokens}": config.class_tokens != 1,
        f"it has no no_embed_class={config.no_embed_class}": config.embeds_class != usual.embeds_class,
        f"it has no final_norm={config.final_norm}": config.norms_last_map != usual.norms_last_map,
        "it has no last_mix_norm=False": not config.last_mix_norm,
        "it has no decoder_class_token=False": not config.decoder_class_token,
        f"it has no pixel_order={config.pixel_order!r}": config.pixel_order != "hwc",
        "CrossMAE's release cannot run a decoder without inter-block attention (feature_maps=None)": (
            config.decoder == "crossmae" and config.feature_maps is None
        ),
    }
