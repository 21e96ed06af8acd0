"""detectron2's ViT, the backbone of ViTDet (arXiv 2203.16527)."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from crossmae.checkpoint.encoders import encoder_tensors
from crossmae.export import notes
from crossmae.model import MaskedAutoencoder


def exported(model: MaskedAutoencoder) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The state dict of the backbone's ``net``, its constructor arguments, and notes."""
    config = model.config
    notes.refuse(
        "detectron2",
        {
            f"it needs square images in pretraining, got {config.image_size}": len(set(config.image_size)) > 1,
            f"it needs square patches, got {config.patch_size}": not isinstance(config.patch_size, int),
        },
    )
    tensors = encoder_tensors(model)
    one = config.class_tokens == 1
    if not one:  # it skips at most one row of positions
        tensors["pos_embed"] = tensors["pos_embed"][:, config.class_tokens :]
    left_out = [name for name in tensors if name.partition(".")[0] in ("cls_token", "norm")]
    arguments = {
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "embed_dim": config.encoder_width,
        "depth": config.encoder_depth,
        "num_heads": config.encoder_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
        "use_abs_pos": True,
        "pretrain_img_size": config.image_size[0],
        "pretrain_use_cls_token": one,
    }
    said = [
        *notes.of_encoders(model, "detectron2 has no place for it"),
        f"left out, as ViTDet has none: {', '.join(left_out)}; so features differ from those of encode()",
        f"pretrain_use_cls_token={one}, as the position embeddings have {'a' if one else 'no'} row for a class token",
        f"norm_layer=partial(torch.nn.LayerNorm, eps={config.norm_eps}), as its default eps is 1e-05",
        "image size, windows, relative positions and drop path are the detector's; rel_pos_h and rel_pos_w are new",
    ]
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, arguments, said
