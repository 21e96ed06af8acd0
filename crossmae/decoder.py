"""The decoder of CrossMAE: masked patches ask, visible patches answer, nobody else speaks."""

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.blocks import NORM_EPS, CrossAttentionBlock, initialize, layer_norm, learned_token
from crossmae.config import Config
from crossmae.masking import Masking
from crossmae.positions import sincos_positions


class FeatureMixing(nn.Module):
    """Every decoder block's own learned, normalised mix of encoder feature maps (CrossMAE, section 3.3)."""

    def __init__(self, blocks: int, maps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, maps))
        self.norms = nn.ModuleList(layer_norm(width) for _ in range(blocks))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, each ``(B, K, E)`` -> one mix per decoder block ``(n, B, K, E)``."""
        scale = torch.stack([norm.get_parameter("weight") for norm in self.norms])
        shift = torch.stack([norm.get_parameter("bias") for norm in self.norms])
        return ck.mix_feature_maps(maps, self.weight, scale, shift, NORM_EPS)


class CrossDecoder(nn.Module):
    """Cross-attention blocks from mask queries to encoder features, then a linear head to pixels.

    The queries of the first block are ``mask_token + position``: one table for all images, normed and projected
    once and gathered by id.
    """

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, feature_width = config.decoder_width, config.encoder_width
        self.mask_token = learned_token(width)
        self.register_buffer("positions", sincos_positions(width, config.grid))
        self.mixing = (
            None
            if config.feature_maps is None
            else FeatureMixing(config.decoder_depth, len(config.feature_maps), feature_width)
        )
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(
                width, feature_width, config.decoder_heads, config.mlp_ratio, config.decoder_self_attention
            )
            for _ in range(config.decoder_depth)
        )
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, config.patch_values)
        self.blocks.apply(initialize)
        self.head.apply(initialize)

    def forward(self, maps: list[Tensor], masking: Masking) -> Tensor:
        """Feature maps, each ``(B, V + 1, E)`` -> predicted patches ``(B, Q, P)``."""
        features = [maps[-1]] * len(self.blocks) if self.mixing is None else self.mixing(maps).unbind()
        x = (self.mask_token + self.positions[:, 1:])[0]
        ids: Tensor | None = masking.predicted_ids
        for block, block_features in zip(self.blocks, features, strict=True):
            x = block(x, block_features, ids)
            ids = None  # from the second block on the rows are there
        return ck.norm_linear(x, self.head.weight, self.head.bias, self.norm.weight, self.norm.bias, self.norm.eps)
