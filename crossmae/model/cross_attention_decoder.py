"""CrossMAE's decoder (arXiv 2401.14391, section 3), for any encoder's feature maps and queries anywhere."""

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.model.blocks import (
    CrossAttentionBlock,
    DecoderLayers,
    Folded,
    initialize,
    keys_and_values_of_blocks,
    learned_tokens,
    run_block,
    to_residual,
)
from crossmae.model.config import Hidden, Residual


class FeatureMixing(nn.Module):
    """Every decoder block's own learned, normalised mix of encoder feature maps (CrossMAE, section 3.3).

    With ``last_norm`` False, the last block's mix is not normalised.
    """

    def __init__(self, blocks: int, maps: int, width: int, eps: float, last_norm: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(blocks, maps))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(blocks - (not last_norm)))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, maps: Sequence[Tensor], blocks: list[DecoderLayers]) -> list[tuple[Tensor, Folded | None]]:
        """Maps, each ``(B, K, E)`` -> the inputs of each decoder block, see ``keys_and_values_of_blocks``."""
        norms = [norm for norm in self.norms if isinstance(norm, nn.LayerNorm)]
        none = self.weight.new_empty(0, maps[0].shape[-1])
        scale = torch.stack([norm.weight for norm in norms]) if norms else none
        shift = torch.stack([norm.bias for norm in norms]) if norms else none
        return keys_and_values_of_blocks(maps, self.weight, scale, shift, blocks, self.eps)


class CrossAttentionDecoder(nn.Module):
    """Cross-attention blocks from queries to feature maps. Queries do not see each other, so any may be left out.

    A query is the learned ``mask_token`` plus any position embedding, such as ``position_embedding`` of coordinates.
    What it predicts is up to the head and the loss.

    Args:
        feature_width: channels E of the feature maps.
        maps: number of feature maps, of which each block learns its own normalised mix (inter-block attention);
            None: a single map, which blocks attend to directly, so normalise it first.
        out_features: values predicted per query; None leaves out the linear head, so you can add your own.
        width: channels D of queries.
        depth: number of blocks.
        heads: attention heads per block; must divide ``width``.
        mlp_ratio: hidden channels of a block's MLP, divided by ``width``.
        norm_eps: epsilon of all LayerNorms.
        self_attention: let queries attend to each other before each block, an ablation of CrossMAE. A prediction then
            depends on which others are requested.
        last_mix_norm: False leaves out the norm on the last block's mix.
        gradient_checkpointing: see ``Config``, as for the remaining arguments.
    """

    def __init__(
        self,
        feature_width: int,
        maps: int | None,
        out_features: int | None,
        width: int = 512,
        depth: int = 12,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        self_attention: bool = False,
        last_mix_norm: bool = True,
        gradient_checkpointing: bool = False,
        hidden_layer: Hidden = "recompute",
        residual: Residual = "float32",
    ) -> None:
        super().__init__()
        _check_sizes(feature_width, maps, out_features, width, depth, heads)
        _check_options(width, mlp_ratio, norm_eps, maps, last_mix_norm, hidden_layer, residual)
        self.feature_width, self.maps = feature_width, maps
        self.gradient_checkpointing, self.residual = gradient_checkpointing, residual
        self.mask_token = learned_tokens(1, width)
        self.mixing = None if maps is None else FeatureMixing(depth, maps, feature_width, norm_eps, last_mix_norm)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, feature_width, heads, mlp_ratio, norm_eps, self_attention, hidden_layer)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.head = None if out_features is None else nn.Linear(width, out_features)
        self.apply(initialize)

    def forward(self, maps: Sequence[Tensor], queries: Tensor, ids: Tensor | None = None) -> Tensor:
        """Predictions ``(B, Q, out_features)``, or ``(B, Q, D)`` after the final norm if there is no head.

        Args:
            maps: feature maps, each ``(B, K, E)``, of any number of tokens K, the same for all.
            queries: position embeddings ``(B, Q, D)``, or ``(N, D)`` to be used for every image.
            ids: ``(B, Q)``, which of the queries ``(N, D)`` to use for each image; by default all.

        Raises:
            ValueError: if the number of maps is wrong, or shapes do not fit.
        """
        for x in self.residuals(maps, queries, ids):
            last = x
        return self.output(last)

    def residuals(self, maps: Sequence[Tensor], queries: Tensor, ids: Tensor | None = None) -> Iterator[Tensor]:
        """The residual ``(B, Q, D)`` after each block in turn; takes the arguments of ``forward``."""
        self._check(maps, queries, ids)
        if queries.ndim == 2 and ids is None:
            ids = torch.arange(queries.shape[0], device=queries.device).expand(maps[0].shape[0], -1)
        # Queries of a table are normed and projected once for all images, and gathered by id.
        mask_token: Tensor = self.mask_token[0]
        x = to_residual(mask_token + queries, self.residual)
        for block, (keys_and_values, folded) in zip(self.blocks, self.keys_and_values(maps), strict=True):
            x = run_block(block, self.gradient_checkpointing, x, keys_and_values, ids, folded)
            ids = None  # from block 2 on, each image has its own queries
            yield x

    def output(self, x: Tensor) -> Tensor:
        """What ``forward`` returns, from the residual ``(B, Q, D)`` after any block."""
        if self.head is None:
            normed: Tensor = self.norm(x)
            return normed
        return ck.norm_linear(x, self.head.weight, self.head.bias, self.norm.weight, self.norm.bias, self.norm.eps)

    def keys_and_values(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Folded | None]]:
        """Keys and values ``(B, K, 2 D)`` of every block, which do not depend on queries, and its folded layers."""
        blocks = [block.layers() for block in self.blocks if isinstance(block, CrossAttentionBlock)]
        if self.mixing is None:
            return [(block.kv(maps[0]), None) for block in blocks]
        return self.mixing(maps, blocks)

    def _check(self, maps: Sequence[Tensor], queries: Tensor, ids: Tensor | None) -> None:
        count, width = self.maps or 1, self.mask_token.shape[-1]
        shapes = [tuple(each.shape) for each in maps]
        # Compared instead of put into a set: the compiler specializes sizes that are hashed.
        alike = len(shapes) == count and all(shape == shapes[0] for shape in shapes)
        if not alike or shapes[0][2:] != (self.feature_width,):
            found = ", ".join(map(str, dict.fromkeys(shapes)))
            raise ValueError(
                f"{type(self).__name__}: maps must be {count} feature map(s) of one shape (batch, tokens, "
                f"{self.feature_width}), got {len(shapes)}, of {found}"
            )
        shape, batch = tuple(queries.shape), shapes[0][0]
        given = () if ids is None else tuple(ids.shape)
        table = len(shape) == 2 and (ids is None or (len(given) == 2 and given[0] == batch))
        rows = len(shape) == 3 and shape[0] == batch and ids is None
        if not (table or rows) or shape[-1] != width:
            raise ValueError(
                f"{type(self).__name__}: queries must have shape ({batch}, queries, {width}), or (positions, {width}) "
                f"with or without ids ({batch}, queries); got {shape} and ids {given or None}"
            )


def _check_sizes(
    feature_width: int, maps: int | None, out_features: int | None, width: int, depth: int, heads: int
) -> None:
    """Refuse invalid sizes, naming all of them."""
    sizes = {"feature_width": feature_width, "maps": maps, "out_features": out_features, "width": width}
    sizes |= {"depth": depth, "heads": heads}
    wrong = [
        f"{name} must be a positive integer, got {size!r}"
        for name, size in sizes.items()
        if size is not None and (type(size) is not int or size < 1)
    ]
    if not wrong and width % heads:
        wrong.append(f"heads must divide width {width}, got {heads}")
    if wrong:
        raise ValueError(f"CrossAttentionDecoder: {'; '.join(wrong)}")


def _check_options(
    width: int,
    mlp_ratio: float,
    norm_eps: float,
    maps: int | None,
    last_mix_norm: bool,
    hidden_layer: Hidden,
    residual: Residual,
) -> None:
    """Refuse options that are invalid or would have no effect, naming all of them."""
    wrong = []
    if not int(width * mlp_ratio) >= 1:
        wrong.append(f"mlp_ratio must leave something of width {width}, got {mlp_ratio}")
    if not norm_eps > 0:
        wrong.append(f"norm_eps must be positive, got {norm_eps}")
    if not last_mix_norm and maps is None:
        wrong.append("last_mix_norm=False needs maps to mix, got maps=None")
    for name, value, kind in (("hidden_layer", hidden_layer, Hidden), ("residual", residual, Residual)):
        if value not in get_args(kind):
            wrong.append(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
    if wrong:
        raise ValueError(f"CrossAttentionDecoder: {'; '.join(wrong)}")
