"""Hugging Face's ViTMAE for MAE, and its ViT for any other encoder, for ``from_pretrained``."""

from typing import Any

from torch import Tensor

from crossmae.checkpoint.encoders import encoder_tensors
from crossmae.checkpoint.huggingface import written
from crossmae.checkpoint.release import to_release
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The state dict, the content of ``config.json``, and notes."""
    config = model.config
    notes.refuse("Hugging Face", {f"it needs one class token, got {config.class_tokens}": config.class_tokens != 1})
    if config.decoder == "mae" and not _unlike_vitmae(config):
        tensors = {**to_release(model.state_dict()), **encoder_tensors(model)}
        said = [
            notes.images(config),
            "ViTMAEModel masks and shuffles patches even for features: from_pretrained(path, mask_ratio=0.0) and "
            f"noise=torch.arange({config.patches}.0).expand(batch, -1) in each call keep all tokens, in order",
        ]
        return written(tensors), {**_encoder(config), **_mae(config)}, said
    unlike = _unlike_vitmae(config) if config.decoder == "mae" else []
    why = f"ViTMAE does not support {', '.join(unlike)}" if unlike else "ViTModel has none"
    said = notes.of_encoders(model, why)
    said.append("use ViTModel.from_pretrained(path, add_pooling_layer=False): a pooler would be untrained")
    if not config.norms_last_map:
        said.append(
            "there is no final norm, as in any CrossMAE that mixes maps, but ViTModel creates an untrained one and "
            "warns that layernorm is missing: set model.layernorm = torch.nn.Identity()"
        )
    said.append(
        "interpolate_pos_encoding=True resizes positions as this package does"
        if config.grid[0] == config.grid[1] and isinstance(config.patch_size, int)
        else "it resizes positions correctly only for square images; crossmae.load(path, image_size=...) resizes these"
    )
    return written(encoder_tensors(model)), _encoder(config), said


def _unlike_vitmae(config: Config) -> list[str]:
    """Settings of an MAE that ViTMAE cannot express."""
    differs = {
        "image_size": len(set(config.image_size)) > 1,
        "patch_size": not isinstance(config.patch_size, int),
        "decoder_norm_eps": config.decoder_eps != config.norm_eps,
        "final_norm": not config.norms_last_map,
        "decoder_class_token": not config.decoder_class_token,
        "pixel_order": config.pixel_order != "hwc",
    }
    return [f"{name}={getattr(config, name)!r}" for name, is_so in differs.items() if is_so]


def _encoder(config: Config) -> dict[str, Any]:
    height, width = config.image_size
    return {
        "model_type": "vit",
        "architectures": ["ViTModel"],
        "hidden_size": config.encoder_width,
        "num_hidden_layers": config.encoder_depth,
        "num_attention_heads": config.encoder_heads,
        "intermediate_size": int(config.encoder_width * config.mlp_ratio),
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.channels,
    }


def _mae(config: Config) -> dict[str, Any]:
    return {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": int(config.decoder_width * config.mlp_ratio),
        "norm_pix_loss": config.normalize_targets,
    }
