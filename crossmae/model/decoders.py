"""The decoders of CrossMAE (arXiv 2401.14391) and of MAE (arXiv 2111.06377), the baseline.

In CrossMAE masked patches attend only to visible ones; in MAE all patches attend to all.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.masking import Masking
from crossmae.model.blocks import (
    SelfAttentionBlock,
    initialize,
    learned_tokens,
    register_positions,
    run_block,
    to_residual,
)
from crossmae.model.config import Config
from crossmae.model.cross_attention_decoder import CrossAttentionDecoder


class CrossMAEDecoder(CrossAttentionDecoder):
    """``CrossAttentionDecoder`` for a configuration, with a position table: its queries are the patches of a mask.

    Also accepts other positions, which need not be those of patches, like its base class.
    """

    positions: Tensor
    head: nn.Linear

    def __init__(self, config: Config) -> None:
        super().__init__(
            feature_width=config.encoder_width,
            maps=None if config.feature_maps is None else len(config.feature_maps),
            out_features=config.patch_values,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            mlp_ratio=config.mlp_ratio,
            norm_eps=config.decoder_eps,
            self_attention=config.decoder_self_attention,
            last_mix_norm=config.last_mix_norm,
            gradient_checkpointing=config.gradient_checkpointing,
            hidden_layer=config.hidden_layer,
            residual=config.residual,
        )
        self.class_tokens = config.class_tokens
        register_positions(self, config.decoder_pos_embed, config.decoder_width, config.grid, config.class_tokens)

    def forward(self, maps: Sequence[Tensor], queries: Tensor | Masking, ids: Tensor | None = None) -> Tensor:
        """Feature maps, each ``(B, K, E)`` -> predictions ``(B, Q, P)`` for the mask's patches or the queries."""
        return super().forward(maps, *self._positions_of(queries, ids))

    def residuals(
        self, maps: Sequence[Tensor], queries: Tensor | Masking, ids: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The residual ``(B, Q, D)`` after each block in turn."""
        return super().residuals(maps, *self._positions_of(queries, ids))

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual ``(B, Q, D)`` after any block, for a mask's queries -> patches ``(B, Q, P)``."""
        return self.output(x)

    def _positions_of(self, queries: Tensor | Masking, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(queries, Masking):
            return self.positions[0, self.class_tokens :], queries.predicted_ids
        return queries, ids


class MAEDecoder(nn.Module):
    """Self-attention blocks over visible tokens and mask tokens, then a linear head to pixels.

    Like the original, it decodes every token, including visible ones, whatever is requested. Of the T tokens, L are
    patches and the others class tokens.
    """

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.embed = nn.Linear(config.encoder_width, width)
        self.mask_token = learned_tokens(1, width)
        register_positions(self, config.decoder_pos_embed, width, config.grid, config.decoder_class_tokens)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config, width, config.decoder_heads, config.decoder_eps)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.decoder_eps)
        self.head = nn.Linear(width, config.patch_values)
        self.apply(initialize)

    def forward(self, maps: list[Tensor], masking: Masking) -> Tensor:
        """The encoder's output, one map ``(B, K, E)`` -> predicted patches ``(B, Q, P)``."""
        for x in self.residuals(maps, masking):
            last = x
        return self.pixels(last, masking)

    def residuals(self, maps: list[Tensor], masking: Masking) -> Iterator[Tensor]:
        """The residual ``(B, T, D)`` after each block in turn."""
        config, kept = self.config, self.config.decoder_class_tokens
        visible = self.embed(maps[-1][:, config.class_tokens - kept :])
        tokens = self.mask_token.to(visible.dtype).expand(visible.shape[0], config.patches, -1)
        tokens = tokens.scatter(1, _rows(masking.visible_ids, visible), visible[:, kept:])
        x = torch.cat([visible[:, :kept], tokens], dim=1) + self.positions
        x = to_residual(x, config.residual)
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
            yield x

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual ``(B, T, D)`` after any block -> the predicted patches ``(B, Q, P)``."""
        norm, head = self.norm, self.head
        tokens = ck.norm_linear(x, head.weight, head.bias, norm.weight, norm.bias, norm.eps)
        patches = tokens[:, self.config.decoder_class_tokens :]
        return patches.gather(1, _rows(masking.predicted_ids, patches))


def _rows(ids: Tensor, like: Tensor) -> Tensor:
    """Ids ``(B, T)`` -> an index ``(B, T, D)`` of whole rows."""
    return ids[:, :, None].expand(-1, -1, like.shape[-1])
