"""The encoder: a vision transformer that sees visible patches only and returns its feature maps."""

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.model.blocks import (
    SelfAttentionBlock,
    initialize,
    learned_token,
    run_block,
    to_residual,
)
from crossmae.model.config import Config
from crossmae.model.positions import sincos_positions


class PatchEmbedding(nn.Module):
    """One linear layer from the pixels of a patch; only the requested patches are embedded.

    The weight keeps the layout of a convolution ``(E, C, p, p)``, as ViT and MAE checkpoints have it.
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(width, channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))

    def forward(self, images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        """Images ``(B, C, H, W)`` and ids ``(B, V)`` -> ``(B, V, E)``; ``mean`` and ``std`` for uint8 images."""
        patches = ck.gather_patches(images, ids, self.patch_size, mean, std)
        return nn.functional.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class Encoder(nn.Module):
    """Vision transformer over visible patches and a class token."""

    positions: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.encoder_width
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch_size, config.channels, width)
        self.cls_token = learned_token(width)
        self.register_buffer("positions", sincos_positions(width, config.grid))
        deepest = max(config.encoder_depth - 1, 1)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config, width, config.encoder_heads, drop_path=config.drop_path * depth / deepest)
            for depth in range(config.encoder_depth)
        )
        # With inter-block attention every decoder block norms its own mix of maps; there is no norm here.
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.feature_maps is None else nn.Identity()
        self.blocks.apply(initialize)

    def forward(
        self, images: Tensor, visible_ids: Tensor, mean: Tensor | None = None, std: Tensor | None = None
    ) -> list[Tensor]:
        """Images ``(B, C, H, W)``, ids ``(B, V)`` -> the chosen maps, each ``(B, V + 1, E)``, class token first.

        ``mean`` and ``std`` ``(C,)`` are for uint8 images, as ``crossmae_kernels.gather_patches`` takes them.
        """
        x = self._tokens(images, visible_ids, mean, std)
        maps = [x]
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
            maps.append(x)
        chosen = self.config.feature_maps
        return [self.norm(x)] if chosen is None else [maps[index] for index in chosen]

    def encode(self, images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Final features ``(B, L + 1, E)``, class token first, of all patches of images ``(B, C, H, W)``."""
        patches = self.positions.shape[1] - 1
        x = self._tokens(images, torch.arange(patches, device=images.device).expand(images.shape[0], -1), mean, std)
        for block in self.blocks:
            x = run_block(block, self.config.gradient_checkpointing, x)
        return self.norm(x)

    def _tokens(self, images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
        patches = to_residual(self.patch_embed(images, ids, mean, std) + self.positions[0, 1:][ids], self.config)
        class_token: Tensor = self.cls_token
        if self.config.decoder != "crossmae":
            # CrossMAE's release gives the class token no position, where MAE and ViTs that are encoders alone do. Fresh
            # tables hold zeros for it, loaded ones may not.
            class_token = class_token + self.positions[:, :1]
        return torch.cat([class_token.to(patches.dtype).expand(patches.shape[0], -1, -1), patches], dim=1)
