"""Forwards on this package's operations that replace blocks' own, and code shared by the models around them.

They hold their module and look up its layers at every call, so replaced parameters or layers take effect; if the module
is copied or pickled, they belong to the copy.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.acceleration.layers import CrossAttentionLayers, SelfAttentionLayers
from crossmae.acceleration.obstacles import Roles, forwards, has_hooks, listed, obstacles
from crossmae.model.blocks import (
    DecoderLayers,
    Folded,
    Projection,
    cross_attention,
    keys_and_values_of_blocks,
    mlp,
    self_attention,
)

# Hugging Face records a block's output by a hook on the block, which still runs.
_RECORDED = ("output_hidden_states",)


class ModuleForward:
    """Replaces the forward of one module."""

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        roles: Roles,
        called: tuple[str, ...] = (),
        tables: tuple[str, ...] = (),
        proven: Mapping[str, Any] | None = None,
    ) -> None:
        """``prefix`` names the module in messages; for the others see ``obstacles``."""
        self.module = module
        self.replaced = type(module).forward
        self.prefix = prefix
        self.roles = roles
        self.called = called
        self.tables = tables
        self.known = {p: f for p, f in forwards(module, called).items() if roles.get(p, module) is None}
        self.known |= proven or {}

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the module's own forward."""
        own = inspect.signature(type(self.module).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])

    @property
    def __code__(self) -> CodeType:
        """``torch.export`` looks up every forward's place in the source."""
        return type(self).__call__.__code__

    def sample(self) -> tuple[Any, ...]:
        """Noise that the module can be called with."""
        raise NotImplementedError

    def obstacles(self) -> list[str]:
        """Every reason why the module's layers, as they are now, are not supported."""
        found = [*obstacles(self.module, self.roles, self.known, self.prefix, self.called, self.tables)]
        if type(self.module).forward is not self.replaced:
            found.append(
                f"{self.prefix.rstrip('.') or 'the model'} is of another class, or its class has another forward"
            )
        return found

    def require_unchanged(self) -> None:
        """Refuse unsupported hooks and layers that were added after acceleration."""
        self.refuse(self.obstacles())

    def refuse(self, problems: list[str]) -> None:
        """Raise RuntimeError if there are problems."""
        if problems:
            raise RuntimeError(f"not supported in an accelerated model: {listed(problems)}; see crossmae.restore")


class BlockForward(ModuleForward):
    """The forward of a transformer block. ``heads`` is used if its attention does not store their number."""

    def __init__(
        self,
        block: nn.Module,
        prefix: str,
        layers: SelfAttentionLayers | CrossAttentionLayers,
        heads: int = 0,
        proven: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(block, prefix, layers.roles, proven=proven)
        self.layers: Any = layers
        self.heads = heads
        parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
        self.parameters = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        self.open_ended = len(self.parameters) < len(parameters)

    def layer(self, path: str) -> Any:
        """The layer currently at a path."""
        return self.module.get_submodule(path)

    @property
    def told_heads(self) -> tuple[str, str]:
        """The path of the attention, and its attribute for the number of heads."""
        if isinstance(self.layers, SelfAttentionLayers):
            return self.layers.attention, self.layers.heads
        return "cross_attn", "num_heads"

    def only(self, tensors: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The first ``tensors`` arguments; others, such as masks, must be left at their default, nothing."""
        values = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        names = self.parameters[:tensors]
        unknown = [] if self.open_ended else [name for name in kwargs if name not in self.parameters]
        if len(args) > len(self.parameters) or unknown or any(name not in values for name in names):
            got = ", ".join([f"{len(args)} arguments", *(f"{name}=" for name in kwargs)])
            raise TypeError(f"{self.prefix}forward takes ({', '.join(self.parameters)}), got {got}")
        served = (*names, *_RECORDED)
        others = [
            name for name, value in values.items() if name not in served and not (value is None or value is False)
        ]
        self.refuse([f"{self.prefix}{name} is supported only at its default" for name in others])
        return [values[name] for name in names]


class SelfAttentionForward(BlockForward):
    """The forward of a block of an encoder or of MAE's decoder."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        self.require_unchanged()
        (x,) = args if len(args) == 1 and not kwargs else self.only(1, args, kwargs)
        block: Any = self.module
        # Hugging Face's checkpointing is part of the forward that was replaced.
        if getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled():
            return block._gradient_checkpointing_func(self.compute, x)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        layers: SelfAttentionLayers = self.layers
        attention, key = self.told_heads
        heads = getattr(self.layer(attention), key, self.heads)
        qkv = _joint([self.layer(path) for path in layers.qkv])
        x = self_attention(x, self.layer(layers.norm1), qkv, self.layer(layers.proj), heads)
        return mlp(x, self.layer(layers.norm2), self.layer(layers.fc1), self.layer(layers.fc2))

    def sample(self) -> tuple[Tensor, ...]:
        """Noise that the block can be called with."""
        return (noise(self.layer(self.layers.norm1), 5),)


class CrossAttentionForward(BlockForward):
    """The forward of a block of CrossMAE's decoder."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Queries ``(B, Q, D)`` and normalised features ``(B, K, E)`` -> ``(B, Q, D)``."""
        x, y = args if len(args) == 2 and not kwargs else self.only(2, args, kwargs)
        return self.attend(x, self.project(y))

    def project(self, y: Tensor) -> Tensor:
        """Keys and values ``(B, K, 2 D)`` of features ``(B, K, E)``."""
        kv = self.layer("cross_attn.kv")
        return nn.functional.linear(y, kv.weight, kv.bias)

    def attend(
        self, x: Tensor, keys_and_values: Tensor, ids: Tensor | None = None, folded: Folded | None = None
    ) -> Tensor:
        """Queries, or table ``(N, D)`` and ids ``(B, Q)``; keys and values ``(B, K, 2 D)`` -> ``(B, Q, D)``."""
        self.require_unchanged()
        block: Any = self.module
        if self.layers.attends_to_itself:
            x, ids = (x if ids is None else x[ids]), None
            heads = getattr(block.self_attn, "num_heads", self.heads)
            x = self_attention(x, block.norm0, block.self_attn.qkv, block.self_attn.proj, heads)
        attention = block.cross_attn
        heads = getattr(attention, "num_heads", self.heads)
        x = cross_attention(x, block.norm1, attention.q, attention.proj, heads, keys_and_values, ids, folded)
        return mlp(x, block.norm2, self.layer(self.layers.fc1), self.layer(self.layers.fc2), folded=folded)

    def folded_layers(self) -> DecoderLayers:
        """The layers that are folded and cast together with those of other blocks."""
        block: Any = self.module
        q, kv, proj = block.cross_attn.q, block.cross_attn.kv, block.cross_attn.proj
        fc1, fc2 = self.layer(self.layers.fc1), self.layer(self.layers.fc2)
        return DecoderLayers(block.norm1, q, kv, proj, block.norm2, fc1, fc2)

    def sample(self) -> tuple[Tensor, ...]:
        """Noise that the block can be called with."""
        return noise(self.layer("norm1"), 3), noise(self.layer("cross_attn.kv"), 5)


def noise(layer: Any, tokens: int, seed: int = 0) -> Tensor:
    """Input ``(2, tokens, width)`` for a layer; its rows span four orders of magnitude, so a wrong epsilon shows."""
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.normalized_shape[-1]
    generator = torch.Generator().manual_seed(seed)
    x, scale = (
        torch.randn(2, tokens, width, generator=generator, device="cpu"),
        torch.rand(2, tokens, 1, generator=generator, device="cpu"),
    )
    return (x * 10 ** (4 * scale - 3)).to(layer.weight.device, layer.weight.dtype).requires_grad_()


def embed(images: Tensor, ids: Tensor, projection: nn.Conv2d, positions: Tensor, token: Tensor) -> Tensor:
    """An encoder's input ``(B, V + 1, E)``: a class token ``(1, 1, E)``, and the visible patches ``ids`` ``(B, V)``.

    ``positions`` are the embeddings of all patches, ``(L, E)``.
    """
    patches = ck.gather_patches(images, ids, projection.kernel_size[0])
    x = nn.functional.linear(patches, projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias)
    x = x + positions[ids]
    return torch.cat([token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)


def decode(
    maps: Sequence[Tensor],
    ids: Tensor,
    table: Tensor,
    mixing_weight: Tensor,
    norms: Sequence[Any],
    blocks: Sequence[Any],
) -> Tensor:
    """CrossMAE's decoder (section 3.3) without its head: ``(B, Q, D)``.

    Args:
        maps: k feature maps ``(B, K, E)``.
        ids: of the patches to predict, ``(B, Q)``.
        table: queries of all patches ``(L, D)``.
        mixing_weight: ``(n, k)``.
        norms: LayerNorms of the n mixes; if the last ones are left out, their mixes are not normed.
        blocks: n blocks, wrapped or not.

    Raises:
        RuntimeError: if the norms cannot be applied together.
    """
    # Shards of a model may compute in other dtypes than the rest.
    dtype = functools.reduce(torch.promote_types, (each.dtype for each in maps))
    maps, normed = [each.to(dtype) for each in maps], len(norms)
    scale, shift, eps = torch.stack([n.weight for n in norms]), torch.stack([n.bias for n in norms]), norms[0].eps
    layers = [block.forward.folded_layers() for block in blocks] if all(map(_is_bare, blocks)) else []
    if layers and all(layer.bias is not None for each in layers for layer in each):
        # Nothing else needs the features, so project keys and values of all normed mixes in one product.
        prepared = keys_and_values_of_blocks(maps, mixing_weight, scale, shift, layers, eps)
        x, places = table, [ids, *[None] * (len(blocks) - 1)]  # from block 2 on, each image has its own queries
        for block, (keys_and_values, folded), place in zip(blocks, prepared, places, strict=True):
            x = block.forward.attend(x, keys_and_values, place, folded)
        return x
    x = table[ids]
    plain = [*ck.mix_feature_maps(maps, mixing_weight[normed:], normalize=False)] if normed < len(blocks) else []
    mixes = [*ck.mix_feature_maps(maps, mixing_weight[:normed], scale, shift, eps), *plain]
    for block, y in zip(blocks, mixes, strict=True):
        x = block(x, y)
    return x


def pixels(x: Tensor, norm: Any, head: Any) -> Tensor:
    """The decoder's head: ``(B, Q, D)`` -> ``(B, Q, P)``."""
    return ck.norm_linear(x, head.weight, head.bias, norm.weight, norm.bias, norm.eps)


def overridden(module: nn.Module) -> set[str]:
    """Methods that the instance overrides, except ``forward`` and what ``nn.Module.compile`` sets, which calls it."""
    own = {n for n, value in module.__dict__.items() if callable(value) and hasattr(type(module), n)}
    return own - {"forward", "_compiled_call_impl"}


def _joint(layers: list[nn.Linear]) -> nn.Linear | Projection:
    """Concatenate projections into one."""
    if len(layers) == 1:
        return layers[0]
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return Projection(torch.cat(weights), torch.cat(biases) if biases else None)


def _is_bare(block: nn.Module) -> bool:
    """Whether calling the block does no more than our forward: no hooks, wrappers, sharding or compilation."""
    return (
        isinstance(block.__dict__.get("forward"), CrossAttentionForward)
        and not has_hooks(block)
        and block._compiled_call_impl is None
        and not nn.modules.module._has_any_global_hook()
    )
