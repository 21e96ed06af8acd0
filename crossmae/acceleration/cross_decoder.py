"""A CrossMAE decoder that is a separate module, like stable-pretraining's."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmae.acceleration.forward import ModuleForward, decode, noise, pixels
from crossmae.acceleration.obstacles import Roles, has_roles, mixing_obstacles

_LAYERS: Roles = {
    "feature_mixer": None,
    "feature_mixer.linear": nn.Linear,
    "context_norms": None,
    "norm": nn.LayerNorm,
    "pred": nn.Linear,
}
_FIRST_BLOCK: Roles = {"blocks.0.cross_attn.kv": nn.Linear}


class CrossDecoderForward(ModuleForward):
    """The forward of a decoder with its mask token, positions, mixing weights, norms, blocks and head.

    Its epsilon is that of its LayerNorms (1e-5 in stable-pretraining, whose encoder has 1e-6), its positions have no
    row for a class token, and nothing here depends on the order of pixels that its head was trained with.
    """

    def __init__(self, decoder: nn.Module, prefix: str) -> None:
        norms = {f"context_norms.{name}": nn.LayerNorm for name in decoder.get_submodule("context_norms")._modules}
        super().__init__(decoder, prefix, {**_LAYERS, **norms}, called=("blocks",))

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        """Whether a module has the submodules of such a decoder."""
        has_tables = all(hasattr(module, table) for table in ("mask_token", "pos_embed"))
        return has_tables and has_roles(module, {**_LAYERS, **_FIRST_BLOCK})

    def obstacles(self) -> list[str]:
        """Those of every forward, and reasons why the norms cannot be applied together."""
        norms = [*self.module.get_submodule("context_norms").children()]
        return super().obstacles() or [*mixing_obstacles(f"{self.prefix}context_norms", norms)]

    def __call__(self, context: list[Tensor], query_idx: Tensor) -> Tensor:
        """Feature maps, each ``(B, K, E)``, and ids of the patches to predict ``(B, Q)`` -> ``(B, Q, P)``."""
        self.require_unchanged()
        decoder: Any = self.module
        table = (decoder.mask_token + decoder.pos_embed)[0]
        weight, norms, blocks = decoder.feature_mixer.linear.weight, list(decoder.context_norms), list(decoder.blocks)
        x = decode(context, query_idx, table, weight, norms, blocks)
        return pixels(x, decoder.norm, decoder.pred)

    def sample(self) -> tuple[Any, ...]:
        """Noise that the decoder can be called with."""
        decoder: Any = self.module
        kv, maps = decoder.blocks[0].cross_attn.kv, decoder.feature_mixer.linear.in_features
        patches = decoder.pos_embed.shape[1]
        ids = torch.arange(0, patches, 2, device=decoder.pos_embed.device)
        return [noise(kv, 5, seed) for seed in range(maps)], torch.stack([ids, patches - 1 - ids.flip(0)])
