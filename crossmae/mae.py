"""The decoder of MAE (arXiv 2111.06377), the baseline: self-attention over all patches and the class token."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.blocks import (
    SelfAttentionBlock,
    initialize,
    learned_token,
    residual_stream,
    run_block,
)
from crossmae.config import Config
from crossmae.masking import Masking
from crossmae.positions import sincos_positions


class SelfDecoder(nn.Module):
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
        for x in self.streams(maps, masking):
            last = x
        return self.pixels(last, masking)

    def streams(self, maps: list[Tensor], masking: Masking) -> Iterator[Tensor]:
        """The residual stream ``(B, L + 1, D)`` as each block in turn leaves it."""
        visible = self.embed(maps[-1])
        tokens = self.mask_token.to(visible.dtype).expand(visible.shape[0], self.positions.shape[1] - 1, -1)
        tokens = tokens.scatter(1, _rows(masking.visible_ids, visible), visible[:, 1:])
        x = torch.cat([visible[:, :1], tokens], dim=1) + self.positions
        x = residual_stream(x, self.config)
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
            yield x

    def pixels(self, x: Tensor, masking: Masking) -> Tensor:
        """The residual stream ``(B, L + 1, D)`` behind any block -> the patches to predict ``(B, Q, P)``."""
        norm, head = self.norm, self.head
        patches = ck.norm_linear(x, head.weight, head.bias, norm.weight, norm.bias, norm.eps)[:, 1:]
        return patches.gather(1, _rows(masking.predicted_ids, patches))


def _rows(ids: Tensor, like: Tensor) -> Tensor:
    """Ids ``(B, T)`` -> an index ``(B, T, D)`` of whole rows."""
    return ids[:, :, None].expand(-1, -1, like.shape[-1])
