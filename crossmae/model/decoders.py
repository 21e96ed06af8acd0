"""The decoders of CrossMAE (arXiv 2401.14391) and of MAE (arXiv 2111.06377), the baseline.

In CrossMAE masked patches attend to visible ones and to nothing else; in MAE all patches attend to all.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.masking import Masking
from crossmae.model.blocks import (
    CrossAttentionBlock,
    Folded,
    SelfAttentionBlock,
    initialize,
    keys_and_values_of_blocks,
    learned_token,
    run_block,
    to_residual,
)
from crossmae.model.config import Config
from crossmae.model.positions import sincos_positions


class FeatureMixing(nn.Module):
    """Every decoder block's own learned, normalised mix of encoder feature maps (CrossMAE, section 3.3)."""

    def __init__(self, blocks: int, maps: int, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(blocks, maps))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(blocks))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, maps: list[Tensor], blocks: list[CrossAttentionBlock]) -> list[tuple[Tensor, Folded | None]]:
        """Maps, each ``(B, K, E)`` -> what each decoder block takes, see ``keys_and_values_of_blocks``."""
        norms = [norm for norm in self.norms if isinstance(norm, nn.LayerNorm)]
        scale, shift = torch.stack([norm.weight for norm in norms]), torch.stack([norm.bias for norm in norms])
        return keys_and_values_of_blocks(maps, self.weight, scale, shift, blocks, self.eps)


class CrossMAEDecoder(nn.Module):
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
        for x in self.residuals(maps, masking):
            last = x
        return self.pixels(last, masking)

    def residuals(self, maps: list[Tensor], masking: Masking) -> Iterator[Tensor]:
        """The residual ``(B, Q, D)`` as each block in turn leaves it."""
        x = to_residual((self.mask_token + self.positions[:, 1:])[0], self.config)
        ids: Tensor | None = masking.predicted_ids
        for block, (keys_and_values, folded) in zip(self.blocks, self.keys_and_values(maps), strict=True):
            x = run_block(block, self.config.gradient_checkpointing, x, keys_and_values, ids, folded)
            ids = None  # from the second block on the queries are rows of each image, not a table
            yield x

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual ``(B, Q, D)`` behind any block, of queries ``masking`` names -> patches ``(B, Q, P)``."""
        return ck.norm_linear(x, self.head.weight, self.head.bias, self.norm.weight, self.norm.bias, self.norm.eps)

    def keys_and_values(self, maps: list[Tensor]) -> list[tuple[Tensor, Folded | None]]:
        """Keys and values ``(B, V + 1, 2 D)`` of every block, which depend on no query, and its layers, folded."""
        blocks = self._blocks()
        if self.mixing is None:
            return [(block.cross_attn.kv(maps[-1]), None) for block in blocks]
        return self.mixing(maps, blocks)

    def _blocks(self) -> list[CrossAttentionBlock]:
        return [block for block in self.blocks if isinstance(block, CrossAttentionBlock)]


class MAEDecoder(nn.Module):
    """Self-attention blocks over visible tokens and mask tokens, then a linear head to pixels.

    Like the original it decodes every token, the visible ones too, whatever is asked for.
    """

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.embed = nn.Linear(config.encoder_width, width)
        self.mask_token = learned_token(width)
        self.register_buffer("positions", sincos_positions(width, config.grid))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config, width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, config.patch_values)
        self.apply(initialize)

    def forward(self, maps: list[Tensor], masking: Masking) -> Tensor:
        """The encoder's output, one map ``(B, V + 1, E)`` -> predicted patches ``(B, Q, P)``."""
        for x in self.residuals(maps, masking):
            last = x
        return self.pixels(last, masking)

    def residuals(self, maps: list[Tensor], masking: Masking) -> Iterator[Tensor]:
        """The residual ``(B, L + 1, D)`` as each block in turn leaves it."""
        visible = self.embed(maps[-1])
        tokens = self.mask_token.to(visible.dtype).expand(visible.shape[0], self.positions.shape[1] - 1, -1)
        tokens = tokens.scatter(1, _rows(masking.visible_ids, visible), visible[:, 1:])
        x = torch.cat([visible[:, :1], tokens], dim=1) + self.positions
        x = to_residual(x, self.config)
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
            yield x

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual ``(B, L + 1, D)`` behind any block -> the patches to predict ``(B, Q, P)``."""
        norm, head = self.norm, self.head
        patches = ck.norm_linear(x, head.weight, head.bias, norm.weight, norm.bias, norm.eps)[:, 1:]
        return patches.gather(1, _rows(masking.predicted_ids, patches))


def _rows(ids: Tensor, like: Tensor) -> Tensor:
    """Ids ``(B, T)`` -> an index ``(B, T, D)`` of whole rows."""
    return ids[:, :, None].expand(-1, -1, like.shape[-1])
