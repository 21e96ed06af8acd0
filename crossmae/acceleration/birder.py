"""birder's CrossMAE, built around an encoder that returns all of its feature maps."""

from typing import Any

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.acceleration.forward import ModuleForward, decode, embed, overridden, pixels
from crossmae.acceleration.observation import noise_images
from crossmae.acceleration.obstacles import Roles, has_roles, mixing_obstacles
from crossmae.masking import random_masking

_LAYERS: Roles = {
    "encoder": None,
    "encoder.conv_proj": nn.Conv2d,
    "encoder.patch_embed": None,
    "encoder.encoder": None,
    "encoder.encoder.pre_block": None,
    "encoder.encoder.block": None,
    "encoder.norm": nn.LayerNorm,
    "wfm": None,
    "wfm.linear": nn.Linear,
    "decoder_norms": None,
    "decoder_norm": nn.LayerNorm,
    "pred": nn.Linear,
}
_TABLES = ("encoder.class_token", "encoder.pos_embedding", "encoder.reg_tokens")
_FIRST_BLOCK: Roles = {"decoder_layers.0.cross_attn.kv": nn.Linear}
# Submodules that are called as before or, on top of the encoder, not at all.
_CALLED = (
    "encoder.encoder.block",
    "decoder_layers",
    "encoder.classifier",
    "encoder.attn_pool",
    "encoder.embedding_norm",
)


class BirderForward(ModuleForward):
    """The forward of the whole model: ``loss``, ``pred`` and ``mask`` in a dict.

    The encoder's norm is applied to the last map before mixing, and instead the last block's mix has none. Ratios and
    position table are the model's; targets are always normalised.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        norms = [*model.get_submodule("decoder_norms")._modules][:-1]
        roles = {**_LAYERS, **{f"decoder_norms.{name}": nn.LayerNorm for name in norms}}
        super().__init__(model, prefix, roles, called=_CALLED, tables=_TABLES)

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        """Whether a module has the submodules of such a model."""
        has_tables = all(hasattr(module, name) for name in ("mask_token", "decoder_pos_embed", "kept_mask_ratio"))
        return has_tables and has_roles(module, {**_LAYERS, **_FIRST_BLOCK})

    def obstacles(self) -> list[str]:
        """Those of every forward, and unsupported features that such a model may have."""
        return super().obstacles() or self._more_than_served()

    def _more_than_served(self) -> list[str]:
        model: Any = self.module
        encoder, norms = model.encoder, list(model.decoder_norms)[:-1]
        told = {
            "register tokens (encoder.reg_tokens)": encoder.reg_tokens is not None,
            "no class token (encoder.class_token)": encoder.class_token is None,
            "no table of positions (encoder.pos_embedding)": encoder.pos_embedding is None,
            "causal attention (encoder.encoder.is_causal)": encoder.encoder.is_causal,
            f"masks in larger units (min_mask_size={model.min_mask_size})": model.min_mask_size != 1,
            "a decoder of one block (decoder_layers)": not norms,
        }
        replaced = [f"{self.prefix}{name} was replaced in this instance" for name in sorted(overridden(model))]
        unserved = [
            f"{self.prefix.rstrip('.') or 'the model'} has {what}: not supported"
            for what, is_so in told.items()
            if is_so
        ]
        return [*replaced, *unserved, *mixing_obstacles(f"{self.prefix}decoder_norms", norms)]

    def __call__(self, x: Tensor, *, return_moe_training_output: bool = False) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)`` -> loss, predictions ``(B, Q, P)``, and a mask ``(B, L)``, 1 where predicted."""
        self.require_unchanged()
        if return_moe_training_output:
            raise ValueError("an accelerated model has no experts: return_moe_training_output must be False, got True")
        model: Any = self.module
        encoder, patch = model.encoder, model.encoder.conv_proj.kernel_size[0]
        expected = (encoder.conv_proj.in_channels, *model.size)
        if x.shape[1:] != expected:
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        patches = (expected[1] // patch) * (expected[2] // patch)
        masking = random_masking(
            x.shape[0], patches, model.mask_ratio, model.kept_mask_ratio, device=x.device, rounding="release"
        )
        ids = masking.predicted_ids
        table = (model.mask_token + model.decoder_pos_embed)[0]
        norms, blocks = list(model.decoder_norms)[:-1], list(model.decoder_layers)
        queries = decode(self._encode(x, masking.visible_ids), ids, table, model.wfm.linear.weight, norms, blocks)
        pred = pixels(queries, model.decoder_norm, model.pred)
        loss = ck.patch_loss(pred, x, ids, patch, normalize=True)
        mask = torch.zeros(x.shape[0], patches, device=x.device).scatter(1, ids, 1)
        return {"loss": loss.to(torch.promote_types(pred.dtype, x.dtype)), "pred": pred, "mask": mask}

    def _encode(self, images: Tensor, visible_ids: Tensor) -> list[Tensor]:
        """Outputs of all blocks, each ``(B, V + 1, E)``; the last one is normed."""
        model: Any = self.module
        encoder = model.encoder
        positions, token = encoder.pos_embedding[0], encoder.class_token
        if encoder.pos_embed_special_tokens:
            token, positions = token + positions[:1], positions[1:]
        x = embed(images, visible_ids, encoder.conv_proj, positions, token)
        maps = []
        for block in encoder.encoder.block:
            x = block(x)
            maps.append(x)
        norm = encoder.norm
        maps[-1] = nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return maps

    def sample(self) -> tuple[Tensor, ...]:
        """Images of noise that the model can be called with."""
        model: Any = self.module
        projection = model.encoder.conv_proj
        return (noise_images(model.mask_token, projection.in_channels, model.size, projection.kernel_size[0]),)
