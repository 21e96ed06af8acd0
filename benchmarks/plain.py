"""CrossMAE's decoder in the formulation that is in use today, on the same weights: what ours has to beat.

Feature maps are stacked on the last axis, every block norms a strided slice of their mix, all mask tokens are laid
out and the predicted ones selected by a boolean mask, and every block projects every query.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae.decoder import CrossDecoder
from crossmae.masking import Masking


def plain_decode(decoder: CrossDecoder, maps: list[Tensor], masking: Masking) -> Tensor:
    """The same as ``decoder(maps, masking)`` for a decoder with inter-block attention and no self-attention."""
    assert decoder.mixing is not None
    batch, patches = len(maps[0]), decoder.positions.shape[1] - 1
    mixed = F.linear(torch.stack(maps, dim=-1), decoder.mixing.weight)  # (B, K, E, n)
    chosen = torch.zeros(batch, patches, dtype=torch.bool, device=mixed.device)
    chosen = chosen.scatter(1, masking.predicted_ids, True)
    tokens = decoder.mask_token + decoder.positions[:, 1:].repeat(batch, 1, 1)
    x = tokens.masked_select(chosen[:, :, None]).view(batch, -1, tokens.shape[-1])
    blocks: Iterable[Any] = zip(decoder.blocks, decoder.mixing.norms, mixed.unbind(-1), strict=True)
    for block, norm, features in blocks:
        features = norm(features)
        x = x + _attend(block.cross_attn, block.norm1(x), features)
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return decoder.head(decoder.norm(x))


def _attend(attention: Any, x: Tensor, features: Tensor) -> Tensor:
    """Cross-attention with heads moved to the front and back."""
    batch, queries, width = x.shape
    query = attention.q(x).view(batch, queries, attention.heads, -1).transpose(1, 2)
    key, value = attention.kv(features).view(batch, features.shape[1], 2, attention.heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value)
    return attention.proj(attended.transpose(1, 2).reshape(batch, queries, width))
