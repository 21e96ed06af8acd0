"""The decoder of CrossMAE: masked patches ask, visible patches answer, nobody else speaks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.blocks import NORM_EPS, CrossAttentionBlock, initialize, layer_norm, learned_token
from crossmae.config import Config
from crossmae.masking import Masking
from crossmae.positions import sincos_positions


class FeatureMixing(nn.Module):
    """Every decoder block's own learned, normalised mix of encoder feature maps (CrossMAE, section 3.3).

    The norms' scales and shifts are folded into the projections behind them.
    """

    def __init__(self, blocks: int, maps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, maps))
        self.norms = nn.ModuleList(layer_norm(width) for _ in range(blocks))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, each ``(B, K, E)`` -> one mix per decoder block ``(n, B, K, E)``, of mean 0 and variance 1."""
        return ck.mix_feature_maps(maps, self.weight, eps=NORM_EPS)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scales and shifts of all norms, each ``(n, E)``."""
        return _stacked(self.norms, "weight"), _stacked(self.norms, "bias")


def _stacked(modules: Iterable[nn.Module], parameter: str) -> Tensor:
    return torch.stack([module.get_parameter(parameter) for module in modules])


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
        x = (self.mask_token + self.positions[:, 1:])[0]
        ids: Tensor | None = masking.predicted_ids
        for block, keys_and_values in zip(self.blocks, self.keys_and_values(maps), strict=True):
            x = block(x, keys_and_values, ids)
            ids = None  # from the second block on the rows are there
        return ck.norm_linear(x, self.head.weight, self.head.bias, self.norm.weight, self.norm.bias, self.norm.eps)

    def keys_and_values(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Keys and values of every block, ``(B, V + 1, 2 D)``, in one batched product: they wait for no query."""
        projections = [block.get_submodule("cross_attn.kv") for block in self.blocks]
        weight, bias = _stacked(projections, "weight"), _stacked(projections, "bias")
        if self.mixing is None:
            features = maps[-1].expand(len(self.blocks), -1, -1, -1)
        else:
            features = self.mixing(maps)
            weight, bias = ck.fold_norm(weight, bias, *self.mixing.affine())
        projected = torch.baddbmm(bias.unsqueeze(1), features.flatten(1, 2), weight.mT)
        return projected.unflatten(1, maps[-1].shape[:2]).unbind()
