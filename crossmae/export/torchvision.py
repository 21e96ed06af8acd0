"""torchvision's VisionTransformer."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from crossmae.checkpoint.encoders import encoder_tensors
from crossmae.checkpoint.torchvision import NAMES
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The state dict, constructor arguments, and notes."""
    config = model.config
    height, width = config.image_size
    notes.refuse(
        "torchvision",
        {
            f"it needs square images, got {config.image_size}": height != width,
            f"it needs square patches, got {config.patch_size}": not isinstance(config.patch_size, int),
            f"it needs one class token, got {config.class_tokens}": config.class_tokens != 1,
            f"it needs 3 channels, got {config.channels}": config.channels != 3,
        },
    )
    arguments = {
        "image_size": height,
        "patch_size": config.patch_size,
        "num_layers": config.encoder_depth,
        "num_heads": config.encoder_heads,
        "hidden_dim": config.encoder_width,
        "mlp_dim": int(config.encoder_width * config.mlp_ratio),
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
    }
    said = notes.of_encoders(model, "torchvision has none")
    said.append("there are no heads: set model.heads = torch.nn.Identity(), or your own, which gets the class token")
    if not config.norms_last_map:
        said.append(
            "there is no final norm, as in any CrossMAE that mixes maps, but an untrained one spoils the features: set "
            "model.encoder.ln = torch.nn.Identity()"
        )
    if config.norm_eps != notes.LAYER_NORM_EPS:
        said.append(f"build the model with norm_layer=partial(torch.nn.LayerNorm, eps={config.norm_eps})")
    said.append(
        "torchvision's interpolate_embeddings aligns corners, which changes positions; to avoid that, resize before "
        "exporting with crossmae.load(path, image_size=...)"
    )
    return {NAMES.written(name): tensor for name, tensor in encoder_tensors(model).items()}, arguments, said
