"""CrossMAE as formulated in its release, which people use today, on the same weights: the baseline to beat.

Written from its described behaviour, not from its code.

All patches are embedded, and most are then dropped. Feature maps are stacked on the last axis, and every decoder block
norms a strided slice of their mix. All mask tokens are created and the predicted ones selected by a boolean mask; every
block projects every query. Target patches are computed for the whole image. Under autocast the residual is float32.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae.masking import Masking
from crossmae.model import MaskedAutoencoder
from crossmae.model.decoders import CrossMAEDecoder
from crossmae.model.encoder import Encoder
from crossmae.model.values import pair

# Why it cannot be captured in a CUDA graph.
SYNCHRONIZES = "selects by a boolean mask, and the host waits to learn how many"


def release_decode(decoder: CrossMAEDecoder, maps: list[Tensor], masking: Masking) -> Tensor:
    """Equals ``decoder(maps, masking)`` for a decoder with inter-block attention and no self-attention."""
    assert decoder.mixing is not None
    batch, patches = len(maps[0]), decoder.positions.shape[1] - 1
    tokens = decoder.mask_token + decoder.positions[:, 1:].repeat(batch, 1, 1)
    x = _select(tokens, masking.predicted_ids, patches)
    mixed = F.linear(torch.stack(maps, dim=-1), decoder.mixing.weight)  # (B, K, E, n)
    blocks: Iterable[Any] = zip(decoder.blocks, decoder.mixing.norms, mixed.unbind(-1), strict=True)
    for block, norm, features in blocks:
        features = norm(features)
        x = x + _attend(block.cross_attn, block.norm1(x), features)
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return decoder.head(decoder.norm(x))


def release_mixing(maps: list[Tensor], weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """``mix_feature_maps`` without affine parameters, one mix ``(B, K, E)`` per decoder block."""
    mixed = F.linear(torch.stack(maps, dim=-1), weight)
    return tuple(F.layer_norm(features, features.shape[-1:], eps=eps) for features in mixed.unbind(-1))


def release_projections(
    maps: list[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
) -> tuple[Tensor, ...]:
    """``project_feature_maps``, block by block."""
    mixed = F.linear(torch.stack(maps, dim=-1), mixing_weight)
    layers = zip(mixed.unbind(-1), norm_weight, norm_bias, weights, biases, strict=True)
    return tuple(
        F.linear(F.layer_norm(features, features.shape[-1:], scale, shift, eps), weight, bias)
        for features, scale, shift, weight, bias in layers
    )


def release_encode(encoder: Encoder, images: Tensor, masking: Masking) -> list[Tensor]:
    """Equals ``encoder(images, masking.visible_ids)`` for an encoder that returns feature maps."""
    assert encoder.config.feature_maps is not None
    embed = encoder.patch_embed
    patches = F.conv2d(images, embed.weight, embed.bias, stride=embed.patch_size).flatten(2).transpose(1, 2)
    patches = patches + encoder.positions[:, 1:]
    visible = patches.gather(1, masking.visible_ids[:, :, None].expand(-1, -1, patches.shape[-1]))
    class_token = (encoder.cls_token + encoder.positions[:, :1]).expand(len(images), -1, -1)
    x = torch.cat([class_token, visible], dim=1)
    maps = [x]
    blocks: Iterable[Any] = encoder.blocks
    for block in blocks:
        normed = block.norm1(x)
        qkv = block.attn.qkv(normed).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + block.attn.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(normed.shape))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        maps.append(x)
    return [maps[index] for index in encoder.config.feature_maps]


def release_gather(images: Tensor, ids: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """``gather_patches``, by patchifying the whole image."""
    patches = _patchify(images, patch_size)
    return patches.gather(1, ids[:, :, None].expand(-1, -1, patches.shape[-1]))


def release_loss(prediction: Tensor, images: Tensor, ids: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """``patch_loss`` of each predicted patch ``(B, Q)`` with normalised targets; ids must be ascending."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    target = _patchify(images, patch_size).to(dtype)
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    target = (target - mean) / (variance + 1e-6).sqrt()
    return (prediction.to(dtype) - _select(target, ids, target.shape[1])).square().mean(dim=-1)


def release_model_loss(model: MaskedAutoencoder, images: Tensor, masking: Masking) -> Tensor:
    """The loss of ``model(images, masking=masking)`` for a model that normalises its targets."""
    decoder = model.decoder
    assert isinstance(decoder, CrossMAEDecoder)
    prediction = release_decode(decoder, release_encode(model.encoder, images, masking), masking)
    return release_loss(prediction, images, masking.predicted_ids, model.config.patch_size).mean()


def _patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` -> all patches ``(B, L, P)``."""
    height, width = pair(patch_size)
    tiles = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _select(rows: Tensor, ids: Tensor, patches: int) -> Tensor:
    """Select rows of ``(B, L, D)`` with ascending ids ``(B, Q)`` by a boolean mask."""
    chosen = torch.zeros(len(rows), patches, dtype=torch.bool, device=rows.device).scatter(1, ids, True)
    return rows.masked_select(chosen[:, :, None]).view(len(rows), -1, rows.shape[-1])


def _attend(attention: Any, x: Tensor, features: Tensor) -> Tensor:
    """Cross-attention with heads moved to the front and back."""
    batch, queries, width = x.shape
    query = attention.q(x).view(batch, queries, attention.heads, -1).transpose(1, 2)
    key, value = attention.kv(features).view(batch, features.shape[1], 2, attention.heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value)
    return attention.proj(attended.transpose(1, 2).reshape(batch, queries, width))
