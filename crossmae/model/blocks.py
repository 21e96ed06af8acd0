"""The building blocks of encoder and decoders: attention and MLP with their norms and residuals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae.model.config import Config, Hidden, Positions, Residual
from crossmae.model.positions import sincos_positions
from crossmae_kernels.feature_projection import project_keys_and_values
from crossmae_kernels.runtime.autocast import autocasts, compute_dtype


class Projection(NamedTuple):
    """Parameters that replace a linear layer's own."""

    weight: Tensor
    bias: Tensor | None


class Folded(NamedTuple):
    """Parameters that replace those of a decoder block's layers, with the norms' affines folded in."""

    q: Projection
    proj: Projection
    fc1: Projection
    fc2: Projection


class DecoderLayers(NamedTuple):
    """The layers of a decoder block that are folded and cast together with those of other blocks."""

    norm1: nn.LayerNorm
    q: nn.Linear
    kv: nn.Linear
    proj: nn.Linear
    norm2: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear


class BareNorm(NamedTuple):
    """A LayerNorm whose affine is folded into the next layer."""

    eps: float
    weight: None = None
    bias: None = None


Norm = nn.LayerNorm | BareNorm
Layer = nn.Linear | Projection


def self_attention(x: Tensor, norm: nn.LayerNorm, qkv: Layer, proj: nn.Linear, heads: int) -> Tensor:
    """``x + proj(attention(qkv(norm(x))))``, ``(B, T, D)`` -> ``(B, T, D)``."""
    packed = ck.norm_linear(x, qkv.weight, qkv.bias, norm.weight, norm.bias, norm.eps)
    attended = ck.self_attention_qkvpacked(packed, heads)
    return ck.linear_residual(attended, proj.weight, proj.bias, residual=x)


def cross_attention(
    x: Tensor,
    norm: Norm,
    q: Layer,
    proj: Layer,
    heads: int,
    keys_and_values: Tensor,
    ids: Tensor | None = None,
    folded: Folded | None = None,
) -> Tensor:
    """``x + proj(attention(q(norm(x)), keys_and_values))``, with ``folded`` layers if given.

    Queries ``(B, Q, D)``, or a table ``(N, D)`` and ids ``(B, Q)``; projected keys and values ``(B, K, 2 D)`` ->
    ``(B, Q, D)``.
    """
    if folded is not None:
        norm, q, proj = BareNorm(norm.eps), folded.q, folded.proj
    query = ck.norm_linear(x, q.weight, q.bias, norm.weight, norm.bias, norm.eps)
    attended = ck.cross_attention_kvpacked(query, keys_and_values, heads, query_ids=ids)
    return ck.linear_residual(attended, proj.weight, proj.bias, residual=x, residual_ids=ids)


def keys_and_values_of_blocks(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    blocks: Sequence[DecoderLayers],
    eps: float,
) -> list[tuple[Tensor, Folded | None]]:
    """For every decoder block, from its mix of the maps: keys and values ``(B, K, 2 D)``, and its folded layers.

    ``proj`` absorbs what all values have in common; the layers are None if they are not folded. Maps, mixing weights
    and the mixes' norms are those of ``project_feature_maps``; all layers have biases. The layers of all blocks are
    folded
    and cast together, kind by kind: block by block would take three launches each forward and six backward. If only the
    first blocks have norms, the others use their mix and layers unchanged.
    """
    normed = len(norm_weight)
    if normed < len(blocks):
        mixes = ck.mix_feature_maps(maps, mixing_weight[normed:], normalize=False)
        plain = [(block.kv(mix), None) for block, mix in zip(blocks[normed:], mixes, strict=True)]
        if not normed:
            return [*plain]
        first = mixing_weight[:normed], norm_weight, norm_bias, blocks[:normed]
        return [*keys_and_values_of_blocks(maps, *first, eps), *plain]

    def all_of(layer: str) -> tuple[list[Tensor], list[Tensor]]:
        layers: list[Any] = [getattr(block, layer) for block in blocks]
        return [each.weight for each in layers], [each.bias for each in layers]

    def folded(layer: str, norm_weight: Tensor | None, norm_bias: Tensor) -> list[Projection]:
        weights, biases = all_of(layer)
        stacks = ck.fold_norm(weights, torch.stack(biases), norm_weight, norm_bias, compute_dtype(weights[0]))
        return [*map(Projection, *(stack.unbind() for stack in stacks))]

    weights, biases = all_of("kv")
    projected, of_values = project_keys_and_values(maps, mixing_weight, norm_weight, norm_bias, weights, biases, eps)
    if of_values is None:
        return [(keys_and_values, None) for keys_and_values in projected]
    # The MLP's second layer is only cast, as nothing is folded into it; its bias is used unchanged.
    weights, biases = all_of("fc2")
    if weights[0].dtype != (dtype := compute_dtype(weights[0])):
        weights = [*ck.fold_norm(weights, None, None, None, dtype)[0].unbind()]
    layers = (
        folded("q", *map(torch.stack, all_of("norm1"))),
        folded("proj", None, of_values),
        folded("fc1", *map(torch.stack, all_of("norm2"))),
        [*map(Projection, weights, biases)],
    )
    return [*zip(projected, map(Folded, *layers), strict=True)]


def mlp(
    x: Tensor,
    norm: Norm,
    fc1: Layer,
    fc2: Layer,
    hidden: Hidden = "recompute",
    folded: Folded | None = None,
) -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))``, ``(..., D)`` -> ``(..., D)``, with ``folded`` layers if given."""
    if folded is not None:
        norm, fc1, fc2 = BareNorm(norm.eps), folded.fc1, folded.fc2
    return ck.mlp(x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps, hidden=hidden)


class SelfAttention(nn.Module):
    """The layers of ``self_attention``; the norm belongs to the caller's block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        return self_attention(x, norm, self.qkv, self.proj, self.heads)


class CrossAttention(nn.Module):
    """The layers of ``cross_attention``; the norm belongs to the caller's block.

    Keys and values are projected outside, for all blocks at once (``CrossAttentionDecoder.keys_and_values``).
    """

    def __init__(self, width: int, feature_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(feature_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        keys_and_values: Tensor,
        ids: Tensor | None = None,
        folded: Folded | None = None,
    ) -> Tensor:
        """See ``cross_attention``."""
        return cross_attention(x, norm, self.q, self.proj, self.heads, keys_and_values, ids, folded)


class Mlp(nn.Module):
    """The layers of ``mlp``; the norm belongs to the caller's block."""

    def __init__(self, width: int, hidden: int, policy: Hidden) -> None:
        super().__init__()
        self.policy = policy
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm, folded: Folded | None = None) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return mlp(x, norm, self.fc1, self.fc2, self.policy, folded)


class SelfAttentionBlock(nn.Module):
    """Pre-norm transformer block of the encoder and of MAE's decoder."""

    def __init__(self, config: Config, width: int, heads: int, eps: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.hidden_layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        x = self._skipped(x, self.attn(x, self.norm1))
        return self._skipped(x, self.mlp(x, self.norm2))

    def _skipped(self, x: Tensor, after: Tensor) -> Tensor:
        """Stochastic depth: ``x`` for some images, ``after`` with a scaled-up branch for the others."""
        if not self.training or self.drop_path == 0:
            return after
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
        return x + (after - x) * (kept / (1 - self.drop_path)).to(x.dtype)


class CrossAttentionBlock(nn.Module):
    """Decoder block of CrossMAE; optionally with self-attention among the queries first (an ablation)."""

    def __init__(
        self,
        width: int,
        feature_width: int,
        heads: int,
        mlp_ratio: float,
        eps: float,
        attends_to_itself: bool,
        hidden_layer: Hidden,
    ) -> None:
        super().__init__()
        if attends_to_itself:
            self.norm0 = nn.LayerNorm(width, eps=eps)
            self.self_attn = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.cross_attn = CrossAttention(width, feature_width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), hidden_layer)
        self.attends_to_itself = attends_to_itself

    def layers(self) -> DecoderLayers:
        """The layers that are folded and cast together with those of other blocks."""
        attention, mlp = self.cross_attn, self.mlp
        return DecoderLayers(self.norm1, attention.q, attention.kv, attention.proj, self.norm2, mlp.fc1, mlp.fc2)

    def forward(
        self, x: Tensor, keys_and_values: Tensor, ids: Tensor | None = None, folded: Folded | None = None
    ) -> Tensor:
        """Queries ``(B, Q, D)``, or table ``(N, D)`` and ids ``(B, Q)``; ``(B, K, 2 D)`` -> ``(B, Q, D)``.

        ``folded`` comes from ``keys_and_values_of_blocks``.
        """
        if self.attends_to_itself:
            if ids is not None:
                # Self-attention depends on which other patches are predicted, so images cannot share anything.
                x, ids = x[ids], None
            x = self.self_attn(x, self.norm0)
        return self.mlp(self.cross_attn(x, self.norm1, keys_and_values, ids, folded), self.norm2, folded)


def run_block(block: nn.Module, checkpointed: bool, *arguments: Tensor | Folded | None) -> Tensor:
    """The block's output; ``checkpointed`` saves only the arguments and recomputes the block in the backward pass."""
    if checkpointed and block.training and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


def to_residual(x: Tensor, residual: Residual) -> Tensor:
    """``x`` in the dtype of the residual between blocks, see ``Config.residual``."""
    device = x.device.type
    if residual == "autocast" and autocasts(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def initialize(module: nn.Module) -> None:
    """MAE's initialisation (appendix A.1): Xavier-uniform linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def learned_tokens(count: int, width: int) -> nn.Parameter:
    """Class or mask tokens, or positions, ``(1, count, width)``, N(0, 0.02^2)."""
    return nn.Parameter(torch.empty(1, count, width).normal_(std=0.02))


def register_positions(
    module: nn.Module, kind: Positions, width: int, grid: tuple[int, int], class_tokens: int
) -> None:
    """Give a module its ``positions`` ``(1, class_tokens + rows * columns, width)``, a buffer or a parameter."""
    if kind == "learn":
        module.positions = learned_tokens(class_tokens + grid[0] * grid[1], width)
    else:
        module.register_buffer("positions", sincos_positions(width, grid, class_tokens))
