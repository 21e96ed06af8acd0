"""timm's VisionTransformer, as ``timm.create_model("local-dir:FOLDER")`` opens it."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from crossmae.checkpoint.encoders import encoder_tensors
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """State dict, contents of ``config.json`` and notes; ``VisionTransformer(**config["model_args"])`` is the model."""
    config = model.config
    notes.refuse("timm", {f"it has one class token, got {config.class_tokens}": config.class_tokens != 1})
    arguments: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": 0,
        "embed_dim": config.encoder_width,
        "depth": config.encoder_depth,
        "num_heads": config.encoder_heads,
        "mlp_ratio": config.mlp_ratio,
        # Where there is a norm it stays in front of the pooling, whatever global_pool is chosen: none is untrained.
        "final_norm": config.norms_last_map,
        "fc_norm": False,
    }
    if config.norm_eps != notes.LAYER_NORM_EPS:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    pretrained = {"input_size": [config.channels, *config.image_size], "fixed_input_size": True, "num_classes": 0}
    pretrained |= {"first_conv": "patch_embed.proj", "classifier": "head", "interpolation": "bicubic"}
    said = notes.of_encoders(model, "timm has no place for it")
    if config.pixel_mean is not None and config.pixel_numbers != "values":  # timm's are of shares
        pretrained |= {"mean": config.pixel_mean, "std": config.pixel_std}
    else:
        said[0] += "; timm takes ImageNet's statistics"
    if not config.norms_last_map:
        said.append(
            "there is no final norm, as in any CrossMAE that mixes maps: final_norm=False makes `norm` and `fc_norm` "
            "identities, where an untrained norm would spoil the features"
        )
    else:
        said.append("keep fc_norm=False with global_pool='avg', or timm puts an untrained norm in place of `norm`")
    said.append(
        "timm resizes positions with antialiasing, which changes them; crossmae.load(path, image_size=...) before "
        "exporting does not"
    )
    # The name is one that timm knows; the arguments tell all sizes.
    contents = {"architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": config.encoder_width}
    return encoder_tensors(model), {**contents, "model_args": arguments, "pretrained_cfg": pretrained}, said
