"""The encoder: a vision transformer that sees only visible patches and returns its feature maps."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.model.blocks import (
    SelfAttentionBlock,
    initialize,
    learned_tokens,
    register_positions,
    run_block,
    to_residual,
)
from crossmae.model.config import Config
from crossmae.model.positions import interpolate_positions
from crossmae.model.values import pair


class PatchEmbedding(nn.Module):
    """A linear layer on a patch's pixels; only the requested patches are embedded.

    The weight has the layout of a convolution ``(E, C, p, q)``, as in ViT and MAE checkpoints.
    """

    def __init__(self, patch_size: int | tuple[int, int], channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(width, channels, *pair(patch_size)))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(self, images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        """Images ``(B, C, H, W)`` and ids ``(B, V)`` -> ``(B, V, E)``; ``mean`` and ``std`` for uint8 images."""
        patches = ck.gather_patches(images, ids, self.patch_size, mean, std)
        return nn.functional.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class Encoder(nn.Module):
    """Vision transformer over class tokens (usually one) and visible patches: K tokens in total, class tokens first."""

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.encoder_width
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch_size, config.channels, width)
        self.cls_token = learned_tokens(config.class_tokens, width)
        register_positions(self, config.pos_embed, width, config.grid, config.class_tokens)
        deepest = max(config.encoder_depth - 1, 1)
        rates = [config.drop_path * depth / deepest for depth in range(config.encoder_depth)]
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config, width, config.encoder_heads, config.norm_eps, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.norms_last_map else nn.Identity()
        self.blocks.apply(initialize)

    def forward(
        self, images: Tensor, visible_ids: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> list[Tensor]:
        """Images ``(B, C, H, W)``, ids ``(B, V)`` -> the chosen maps, each ``(B, K, E)``.

        ``mean`` and ``std`` ``(C,)`` are for uint8 images, see ``crossmae_kernels.gather_patches``.
        """
        maps = [*self._maps(self._tokens(images, visible_ids, self.positions, mean, std))]
        maps[-1] = self.norm(maps[-1])
        chosen = self.config.feature_maps
        return maps[-1:] if chosen is None else [maps[index] for index in chosen]

    def maps_of_whole_images(
        self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> Iterator[Tensor]:
        """All patches of images ``(B, C, H, W)`` -> the first block's input, then each block's output, without norm.

        Positions are interpolated if the image size differs from the configuration's.
        """
        config, (height, width) = self.config, pair(self.config.patch_size)
        grid, positions = (images.shape[2] // height, images.shape[3] // width), self.positions
        if grid != config.grid:
            positions = interpolate_positions(positions, config.grid, grid, config.class_tokens)
        ids = torch.arange(grid[0] * grid[1], device=images.device).expand(images.shape[0], -1)
        return self._maps(self._tokens(images, ids, positions, mean, std))

    def _tokens(
        self, images: Tensor, ids: Tensor, positions: Tensor, mean: Tensor | None, std: Tensor | None
    ) -> Tensor:
        first = self.config.class_tokens
        patches = to_residual(
            self.patch_embed(images, ids, mean, std) + positions[0, first:][ids], self.config.residual
        )
        # Class tokens get no position: new sin-cos tables have zeros for them, but loaded ones may not.
        class_tokens = self.cls_token + positions[:, :first] if self.config.embeds_class else self.cls_token
        return torch.cat([class_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1), patches], dim=1)

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        yield x
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
            yield x
