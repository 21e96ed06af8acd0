"""The plain backbone of ViTDet (arXiv 2203.16527), written from what its checkpoints and its paper tell.

Images of any size, positions resized bicubically from a square grid, global attention alone, no class token, no norm
at the end, maps of channels first.
"""

import torch
import torch.nn.functional as F
from releases import Block
from torch import nn


class PatchEmbed(nn.Module):
    def __init__(self, in_chans, embed_dim, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)


class ViT(nn.Module):
    def __init__(
        self, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, qkv_bias, norm_layer, use_abs_pos,
        pretrain_img_size, pretrain_use_cls_token,
    ):  # fmt: skip
        super().__init__()
        assert qkv_bias
        assert use_abs_pos
        self.side, self.class_rows = pretrain_img_size // patch_size, int(pretrain_use_cls_token)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2 + self.class_rows, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, norm_layer) for _ in range(depth))

    def forward(self, images):
        x = self.patch_embed.proj(images)
        grid = x.shape[2:]
        positions = self.pos_embed[:, self.class_rows :].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        x = x + F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, grid)
