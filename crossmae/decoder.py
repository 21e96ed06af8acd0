"""The decoder of CrossMAE: masked patches ask, visible patches answer, nobody else speaks."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.blocks import (
    CrossAttentionBlock,
    initialize,
    learned_token,
    residual_stream,
    run_block,
)
from crossmae.config import Config
from crossmae.masking import Masking
from crossmae.positions import sincos_positions


class FeatureMixing(nn.Module):
    """Every decoder block's own learned, normalised mix of encoder feature maps (CrossMAE, section 3.3)."""

    def __init__(self, blocks: int, maps: int, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(blocks, maps))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(blocks))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, maps: list[Tensor], projections: list[nn.Linear]) -> tuple[Tensor, ...]:
        """Maps, each ``(B, K, E)`` -> the projection of each decoder block's mix ``(B, K, O)``."""
        scale = torch.stack([norm.get_parameter("weight") for norm in self.norms])
        shift = torch.stack([norm.get_parameter("bias") for norm in self.norms])
        weights, biases = [layer.weight for layer in projections], [layer.bias for layer in projections]
        return ck.project_feature_maps(maps, self.weight, scale, shift, weights, biases, self.eps)


class CrossDecoder(nn.Module):
    """Cross-attention blocks from mask queries to encoder features, then a linear head to pixels.

    The queries of the first block are ``mask_token + position``: one table for all images, normed and projected
    once and gathered by id.
    """

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.mask_token = learned_token(width)
        self.register_buffer("positions", sincos_positions(width, config.grid))
        self.mixing = (
            None
            if config.feature_maps is None
            else FeatureMixing(config.decoder_depth, len(config.feature_maps), config.encoder_width, config.norm_eps)
        )
        self.blocks = nn.ModuleList(CrossAttentionBlock(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, config.patch_values)
        self.blocks.apply(initialize)
        self.head.apply(initialize)

    def forward(self, maps: list[Tensor], masking: Masking) -> Tensor:
        """Feature maps, each ``(B, V + 1, E)`` -> predicted patches ``(B, Q, P)``."""
        for x in self.streams(maps, masking):
            last = x
        return self.pixels(last, masking)

    def streams(self, maps: list[Tensor], masking: Masking) -> Iterator[Tensor]:
        """The residual stream ``(B, Q, D)`` as each block in turn leaves it."""
        x = residual_stream((self.mask_token + self.positions[:, 1:])[0], self.config)
        ids: Tensor | None = masking.predicted_ids
        for block, keys_and_values in zip(self.blocks, self.keys_and_values(maps), strict=True):
            x = run_block(block, self.config.gradient_checkpointing, x, keys_and_values, ids)
            ids = None  # from the second block on the rows are there
            yield x

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual stream ``(B, Q, D)`` behind any block, of queries ``masking`` names -> patches ``(B, Q, P)``."""
        return ck.norm_linear(x, self.head.weight, self.head.bias, self.norm.weight, self.norm.bias, self.norm.eps)

    def keys_and_values(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Keys and values ``(B, V + 1, 2 D)`` of every block; they wait for no query."""
        projections = [block.cross_attn.kv for block in self._blocks()]
        if self.mixing is None:
            return tuple(projection(maps[-1]) for projection in projections)
        return self.mixing(maps, projections)

    def _blocks(self) -> list[CrossAttentionBlock]:
        return [block for block in self.blocks if isinstance(block, CrossAttentionBlock)]
