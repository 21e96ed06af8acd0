"""A pretrained encoder as the plain backbone of a detector: ViTDet (arXiv 2203.16527)."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from crossmae.detection.pyramid import SimpleFeaturePyramid
from crossmae.detection.windows import WindowAttention
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.encoder import Encoder
from crossmae.model.positions import interpolate_positions
from crossmae.model.values import pair

GLOBAL_BLOCKS = 4  # with attention over the whole image, evenly spaced and including the last (ViTDet, section 3)


# Configuration fields for what follows an encoder; by their defaults, nothing does.
_OF_DECODERS = ("feature_maps", "decoder_self_attention", "last_mix_norm", "decoder_class_token")


def backbone_config(pretrained: Config, image_size: int) -> Config:
    """Configure an encoder for square images of this side in pixels, without class token, final norm or decoder.

    Strides of feature maps must be powers of two: patch sizes are rounded to the nearest, such as ViT-H's 14 to 16, as
    in ViTDet.

    Raises:
        ValueError: if patches are not square, or the side is not a multiple of two patches (the pyramid halves maps).
    """
    height, width = pair(pretrained.patch_size)
    if height != width:
        raise ValueError(f"patches must be square for a feature pyramid, got {height} x {width}")
    patch = 2 ** round(math.log2(height))
    if image_size < 1 or image_size % (2 * patch):
        raise ValueError(f"image_size must be a multiple of two patches, 2 x {patch} pixels, got {image_size}")
    return replace(
        pretrained,
        image_size=(image_size, image_size),
        patch_size=patch,
        class_tokens=0,
        final_norm=False,
        decoder=None,
        **{name: getattr(Config, name) for name in _OF_DECODERS},
    )


def backbone_model(pretrained: MaskedAutoencoder, config: Config) -> MaskedAutoencoder:
    """The pretrained encoder in a model of ``backbone_config``, interpolating positions and patch filters."""
    model, old = MaskedAutoencoder(config), pretrained.config
    state = pretrained.encoder.state_dict()
    positions = interpolate_positions(state["positions"], old.grid, config.grid, old.class_tokens)
    state |= {"positions": positions[:, old.class_tokens :], "cls_token": model.encoder.cls_token}
    weight = state["patch_embed.weight"]
    before, after = weight.shape[-1], pair(config.patch_size)[0]
    if before != after:
        filters = F.interpolate(weight, size=(after, after), mode="bicubic", align_corners=False)
        # A filter over more pixels: scaled so that an image of one colour has the same embedding, up to rounding.
        state["patch_embed.weight"] = filters * (before / after) ** 2
    model.encoder.load_state_dict({name: t for name, t in state.items() if not name.startswith("norm.")})
    return model


def use_windows(encoder: Encoder, window: int) -> None:
    """Let all blocks except ``global_blocks`` attend within windows of this side, in patches."""
    block: Any
    for index, block in enumerate(encoder.blocks):
        if index not in global_blocks(len(encoder.blocks)):
            block.attn = WindowAttention(block.attn, encoder.config.grid, window)


def global_blocks(depth: int) -> list[int]:
    """Which of ``depth`` blocks have global attention: the last of each quarter, such as 2, 5, 8 and 11 of 12."""
    return sorted({math.ceil((quarter + 1) * depth / GLOBAL_BLOCKS) - 1 for quarter in range(GLOBAL_BLOCKS)})


def last_map(encoder: Encoder, images: Tensor) -> Tensor:
    """Normalised images ``(B, C, H, W)`` -> the last block's output as a map ``(B, E, rows, columns)``."""
    *_, last = encoder.maps_of_whole_images(images)
    return last.transpose(1, 2).unflatten(2, encoder.config.grid)


class ViTDet(nn.Module):
    """The backbone that torchvision's detectors expect: another module's ``features``, and a pyramid on top."""

    def __init__(self, features: Callable[[Tensor], Tensor], channels: int, out_channels: int) -> None:
        super().__init__()
        self.features, self.out_channels = features, out_channels
        self.pyramid = SimpleFeaturePyramid(channels, out_channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Normalised images ``(B, C, S, S)`` -> feature maps by name, see ``SimpleFeaturePyramid``."""
        return self.pyramid(self.features(images))
