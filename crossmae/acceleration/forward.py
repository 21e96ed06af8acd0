"""Forwards that take the place of a model's own and of its blocks', on this package's operations.

They hold the module they belong to and look up its layers at every call, so that whatever replaces a parameter or a
layer is used; copied or pickled with the module, they belong to the copy.
"""

import functools
import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.acceleration.autocast import State, observe_autocast, state_of, within
from crossmae.acceleration.contract import MASK_RATIO, PREDICTION_RATIO, Contract, filled, results_in
from crossmae.acceleration.obstacles import Roles, forwards, has_hooks, listed, obstacles
from crossmae.acceleration.structure import BLOCKS, CROSS_ATTENTION_BLOCK, Structure, mixing_obstacles, read_structure
from crossmae.masking import Masking, random_masking
from crossmae.model.blocks import Folded, cross_attention, keys_and_values_of_blocks, mlp, self_attention
from crossmae_kernels.patches.reference import standardize


def result_names(structure: Structure) -> tuple[str, ...]:
    """What a model can return: masks are 1 where a patch is predicted, or where it is hidden from the encoder."""
    names = ("loss", "prediction", "target", "all targets", "mask", "hidden")
    return (*names, "all predictions") if structure.maps is None else names


class ModuleForward:
    """The forward of one module, in whose place it stands."""

    def __init__(self, module: nn.Module, prefix: str, roles: Roles, called: tuple[str, ...] = ()) -> None:
        """``prefix`` names the module in messages; the others are as ``obstacles`` takes them."""
        self.module = module
        self.prefix = prefix
        self.roles = roles
        self.called = called
        self.holders = {p: f for p, f in forwards(module, called).items() if roles.get(p, module) is None}

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's own forward."""
        own = inspect.signature(type(self.module).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])

    @property
    def __code__(self) -> CodeType:
        """``torch.export`` asks every forward for its place in the source."""
        return type(self).__call__.__code__

    def require_unchanged(self) -> None:
        """Refuse hooks and layers that came after acceleration and would not be honoured."""
        self.refuse([*obstacles(self.module, self.roles, self.holders, self.prefix, self.called)])

    def refuse(self, problems: list[str]) -> None:
        """Raise RuntimeError if there are problems."""
        if problems:
            raise RuntimeError(f"an accelerated model cannot honour this: {listed(problems)}; see crossmae.restore")


class SelfAttentionForward(ModuleForward):
    """The forward of a block of the encoder or of MAE's decoder."""

    def __init__(self, block: nn.Module, prefix: str, roles: Roles, heads: int) -> None:
        """``heads`` of attention that does not tell its own."""
        super().__init__(block, prefix, roles)
        self.heads = heads

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        self.require_unchanged()
        block: Any = self.module
        heads = getattr(block.attn, "num_heads", self.heads)
        x = self_attention(x, block.norm1, block.attn.qkv, block.attn.proj, heads)
        return mlp(x, block.norm2, block.mlp.fc1, block.mlp.fc2)


class CrossAttentionForward(ModuleForward):
    """The forward of a block of CrossMAE's decoder."""

    def __init__(self, block: nn.Module, prefix: str, roles: Roles, heads: int) -> None:
        """``heads`` of attention that does not tell its own."""
        super().__init__(block, prefix, roles)
        self.heads = heads

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Queries ``(B, Q, D)`` and normalised features ``(B, K, E)`` -> ``(B, Q, D)``."""
        kv: nn.Linear = self.module.get_submodule("cross_attn.kv")  # type: ignore[assignment]
        return self.attend(x, nn.functional.linear(y, kv.weight, kv.bias))

    def attend(
        self, x: Tensor, keys_and_values: Tensor, ids: Tensor | None = None, folded: Folded | None = None
    ) -> Tensor:
        """Queries, or table ``(N, D)`` and ids ``(B, Q)``; keys and values ``(B, K, 2 D)`` -> ``(B, Q, D)``."""
        self.require_unchanged()
        block: Any = self.module
        if "self_attn" in self.roles:
            x, ids = (x if ids is None else x[ids]), None
            heads = getattr(block.self_attn, "num_heads", self.heads)
            x = self_attention(x, block.norm0, block.self_attn.qkv, block.self_attn.proj, heads)
        attention = block.cross_attn
        heads = getattr(attention, "num_heads", self.heads)
        x = cross_attention(x, block.norm1, attention.q, attention.proj, heads, keys_and_values, ids, folded)
        return mlp(x, block.norm2, block.mlp.fc1, block.mlp.fc2, folded=folded)


class ModelForward(ModuleForward):
    """The forward of a whole model. ``arguments`` are the release's, as they were given to ``accelerate``."""

    def __init__(
        self, model: nn.Module, structure: Structure, roles: Roles, arguments: dict[str, Any], contract: Contract
    ) -> None:
        super().__init__(model, "", roles, called=BLOCKS)
        self.structure = structure
        self.arguments = arguments
        self.contract = contract
        self.autocast: dict[str, dict[State, State]] = {}
        self.overridden = self._overridden()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own forward."""
        self.require_unchanged()
        self.refuse([f"{name} was replaced in this instance" for name in self._overridden() - self.overridden])
        self.structure = read_structure(self.module, self.arguments)
        values = self.contract.bind(args, kwargs)
        template = self.contract.template(self.module.training, values)
        images = next(iter(values.values()))
        self._check(images)
        mask_ratio, prediction_ratio = self._ratios(values)
        outer, device_type = state_of(images.device.type), images.device.type
        if device_type not in self.autocast:
            self.autocast[device_type] = observe_autocast(self.module, images)
        with within(device_type, self.autocast[device_type].get(outer, outer)):
            results = self._results(images, mask_ratio, prediction_ratio, results_in(template))
        return filled(template, results)

    def _overridden(self) -> set[str]:
        """Methods of the class that the instance has of its own."""
        model = self.module
        return {n for n, value in model.__dict__.items() if callable(value) and hasattr(type(model), n)} - {"forward"}

    def _check(self, images: object) -> None:
        expected = (self.structure.channels, *self.structure.image_size)
        if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {got}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}")

    def _ratios(self, values: dict[str, Any]) -> tuple[float, float]:
        names = [name for name in (MASK_RATIO, PREDICTION_RATIO) if name in values]
        ratios = [values[name] for name in names]
        if not all(isinstance(ratio, (int, float)) for ratio in ratios) or not 0 < ratios[-1] <= ratios[0] < 1:
            got = ", ".join(f"{name}={ratio!r}" for name, ratio in zip(names, ratios, strict=True))
            raise ValueError(f"ratios must be 0 < {' <= '.join(reversed(names))} < 1, got {got}")
        return ratios[0], ratios[-1]

    def _results(
        self, images: Tensor, mask_ratio: float, prediction_ratio: float, requested: set[str]
    ) -> dict[str, Tensor]:
        """What a call may return, by name, if it is ``requested``."""
        structure, batch = self.structure, images.shape[0]
        masking = random_masking(
            batch, structure.patches, mask_ratio, prediction_ratio, device=images.device, rounding="release"
        )
        ids, patch = masking.predicted_ids, structure.patch_size
        maps = self._encode(images, masking.visible_ids)
        results: dict[str, Tensor] = {}
        if structure.maps is None:
            results["all predictions"] = everything = self._decode_all(maps[-1], masking)
            results["prediction"] = prediction = _rows(everything, ids)
        else:
            results["prediction"] = prediction = self._decode(maps, ids)
        if "loss" in requested:
            loss = ck.patch_loss(prediction, images, ids, patch, structure.normalize_targets)
            if structure.maps is not None:
                # A mean over what is predicted. MAE's is weighted by the mask, which is float32.
                loss = loss.to(torch.promote_types(prediction.dtype, images.dtype))
            results["loss"] = loss
        if requested & {"target", "all targets"}:
            results["all targets"] = targets = self._targets(images)
            results["target"] = _rows(targets, ids)
        empty = torch.zeros(batch, structure.patches, device=images.device)
        if "mask" in requested:
            results["mask"] = empty.scatter(1, ids, 1)
        if "hidden" in requested:
            results["hidden"] = (1 - empty).scatter(1, masking.visible_ids, 0)
        return results

    def _encode(self, images: Tensor, visible_ids: Tensor) -> list[Tensor]:
        """The encoder's input and the output of each of its blocks, each ``(B, V + 1, E)``."""
        model: Any = self.module
        projection: nn.Conv2d = model.patch_embed.proj
        patches = ck.gather_patches(images, visible_ids, self.structure.patch_size)
        x = nn.functional.linear(patches, projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias)
        x = x + model.pos_embed[0, 1:][visible_ids]
        # MAE gives its class token a row of the table, which is zero while the table is the fixed one; CrossMAE none.
        token = model.cls_token + model.pos_embed[:, :1] if self.structure.maps is None else model.cls_token
        maps = [torch.cat([token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)]
        for block in model.blocks:
            maps.append(block(maps[-1]))
        return maps

    def _decode(self, maps: list[Tensor], ids: Tensor) -> Tensor:
        """CrossMAE's decoder: predicted patches ``(B, Q, P)``."""
        model: Any = self.module
        table = (model.mask_token + model.decoder_pos_embed[:, 1:])[0]
        # Shards of a model may compute in other dtypes than the whole.
        dtype = functools.reduce(torch.promote_types, (each.dtype for each in maps))
        chosen = [maps[index].to(dtype) for index in self.structure.maps or ()]
        weight, norms, blocks = model.wfm.linear.weight, list(model.dec_norms), list(model.decoder_blocks)
        self.refuse([*mixing_obstacles(norms)])
        scale, shift = torch.stack([n.weight for n in norms]), torch.stack([n.bias for n in norms])
        if all(_is_bare(block) and _has_all_parameters(block) for block in blocks):
            # Nothing else wants to see the features: keys and values of all blocks in one product.
            prepared = keys_and_values_of_blocks(chosen, weight, scale, shift, blocks, norms[0].eps)
            x, places = table, [ids, *[None] * (len(blocks) - 1)]  # then the queries are rows of each image
            for block, (keys_and_values, folded), place in zip(blocks, prepared, places, strict=True):
                x = block.forward.attend(x, keys_and_values, place, folded)
        else:
            x = table[ids]
            for block, y in zip(blocks, ck.mix_feature_maps(chosen, weight, scale, shift, norms[0].eps), strict=True):
                x = block(x, y)
        return self._pixels(x)

    def _decode_all(self, features: Tensor, masking: Masking) -> Tensor:
        """MAE's decoder: predictions of all patches ``(B, L, P)``."""
        model: Any = self.module
        norm, embed = model.norm, model.decoder_embed
        visible = ck.norm_linear(features, embed.weight, embed.bias, norm.weight, norm.bias, norm.eps)
        ids = masking.visible_ids
        tokens = model.mask_token.to(visible.dtype).expand(visible.shape[0], self.structure.patches, -1)
        tokens = tokens.scatter(1, ids[:, :, None].expand(-1, -1, tokens.shape[-1]), visible[:, 1:])
        x = torch.cat([visible[:, :1], tokens], dim=1) + model.decoder_pos_embed
        for block in model.decoder_blocks:
            x = block(x)
        return self._pixels(x)[:, 1:]

    def _pixels(self, x: Tensor) -> Tensor:
        model: Any = self.module
        norm, head = model.decoder_norm, model.decoder_pred
        return ck.norm_linear(x, head.weight, head.bias, norm.weight, norm.bias, norm.eps)

    def _targets(self, images: Tensor) -> Tensor:
        """What all patches are to be predicted as, ``(B, L, P)``."""
        every = torch.arange(self.structure.patches, device=images.device).expand(images.shape[0], -1)
        patches = ck.gather_patches(images, every, self.structure.patch_size)
        return standardize(patches) if self.structure.normalize_targets else patches


def _rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows ``(B, T, P)`` of ``(B, L, P)``."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[-1]))


def _is_bare(block: nn.Module) -> bool:
    """Whether calling the block does no more than our forward: no hooks, wrappers, sharding or compilation."""
    return (
        isinstance(block.__dict__.get("forward"), CrossAttentionForward)
        and not has_hooks(block)
        and block._compiled_call_impl is None
        and not nn.modules.module._has_any_global_hook()
    )


def _has_all_parameters(block: nn.Module) -> bool:
    """Whether the norms have an affine to be folded, and the layers a bias to fold it into."""
    layers = (block.get_submodule(path) for path, kind in CROSS_ATTENTION_BLOCK.items() if kind is not None)
    return all(layer.bias is not None for layer in layers)
