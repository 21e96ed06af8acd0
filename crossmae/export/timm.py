"""timm's VisionTransformer, for ``timm.create_model("local-dir:FOLDER")``."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from crossmae.checkpoint.encoders import encoder_tensors
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The state dict, the content of ``config.json``, and notes; ``VisionTransformer(**config["model_args"])`` fits."""
    config = model.config
    notes.refuse("timm", {f"it needs one class token, got {config.class_tokens}": config.class_tokens != 1})
    arguments: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": 0,
        "embed_dim": config.encoder_width,
        "depth": config.encoder_depth,
        "num_heads": config.encoder_heads,
        "mlp_ratio": config.mlp_ratio,
        # A final norm stays before the pooling whatever global_pool is, so that no norm is untrained.
        "final_norm": config.norms_last_map,
        "fc_norm": False,
    }
    if config.norm_eps != notes.LAYER_NORM_EPS:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    pretrained = {"input_size": [config.channels, *config.image_size], "fixed_input_size": True, "num_classes": 0}
    pretrained |= {"first_conv": "patch_embed.proj", "classifier": "head", "interpolation": "bicubic"}
    said = notes.of_encoders(model, "timm has none")
    if config.pixel_mean is not None and config.pixel_numbers != "values":  # timm's apply to pixels in [0, 1]
        pretrained |= {"mean": config.pixel_mean, "std": config.pixel_std}
    else:
        said[0] += "; timm assumes ImageNet's statistics"
    if not config.norms_last_map:
        said.append(
            "there is no final norm, as in any CrossMAE that mixes maps: final_norm=False makes `norm` and `fc_norm` "
            "identities, as an untrained norm would spoil the features"
        )
    else:
        said.append("with global_pool='avg' keep fc_norm=False, or timm replaces `norm` by an untrained one")
    said.append(
        "timm resizes positions with antialiasing, which changes them; to avoid that, resize before exporting with "
        "crossmae.load(path, image_size=...)"
    )
    # Any name that timm knows; the arguments give all sizes.
    contents = {"architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": config.encoder_width}
    return encoder_tensors(model), {**contents, "model_args": arguments, "pretrained_cfg": pretrained}, said
