"""The parts that encoder and decoders are made of: attention and MLP with their norms and residuals."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae.model.config import Config, Hidden
from crossmae_kernels.runtime.autocast import autocasts, compute_dtype


def self_attention(x: Tensor, norm: nn.LayerNorm, qkv: nn.Linear, proj: nn.Linear, heads: int) -> Tensor:
    """``x + proj(attention(qkv(norm(x))))``, ``(B, T, D)`` -> ``(B, T, D)``."""
    packed = ck.norm_linear(x, qkv.weight, qkv.bias, norm.weight, norm.bias, norm.eps)
    attended = ck.self_attention_qkvpacked(packed, heads)
    return ck.linear_residual(attended, proj.weight, proj.bias, residual=x)


def cross_attention(
    x: Tensor,
    norm: nn.LayerNorm,
    q: nn.Linear,
    proj: nn.Linear,
    heads: int,
    keys_and_values: Tensor,
    ids: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """``x + proj(attention(q(norm(x)), keys_and_values) + shift)``.

    Queries ``(B, Q, D)``, or a table ``(N, D)`` and ids ``(B, Q)``; projected keys and values ``(B, K, 2 D)``, and
    what their values lack ``(D,)`` -> ``(B, Q, D)``.
    """
    query = ck.norm_linear(x, q.weight, q.bias, norm.weight, norm.bias, norm.eps)
    attended = ck.cross_attention_kvpacked(query, keys_and_values, heads, query_ids=ids)
    layer = proj.weight, proj.bias
    weight, bias = layer if shift is None else ck.fold_norm(*layer, None, shift, compute_dtype(proj.weight))
    return ck.linear_residual(attended, weight, bias, residual=x, residual_ids=ids)


def mlp(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, hidden: Hidden = "recompute") -> Tensor:
    """``x + fc2(gelu(fc1(norm(x))))``, ``(..., D)`` -> ``(..., D)``."""
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

    Keys and values come projected: those of all blocks are computed at once (``CrossMAEDecoder.keys_and_values``).
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
        shift: Tensor | None = None,
    ) -> Tensor:
        """As ``cross_attention``."""
        return cross_attention(x, norm, self.q, self.proj, self.heads, keys_and_values, ids, shift)


class Mlp(nn.Module):
    """The layers of ``mlp``; the norm belongs to the caller's block."""

    def __init__(self, width: int, hidden: int, policy: Hidden) -> None:
        super().__init__()
        self.policy = policy
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return mlp(x, norm, self.fc1, self.fc2, self.policy)


class SelfAttentionBlock(nn.Module):
    """Pre-norm transformer block of the encoder and of MAE's decoder."""

    def __init__(self, config: Config, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.hidden_layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        x = self._skipped(x, self.attn(x, self.norm1))
        return self._skipped(x, self.mlp(x, self.norm2))

    def _skipped(self, x: Tensor, after: Tensor) -> Tensor:
        """``after`` for some images and ``x`` for others, with the branch between them scaled up in return."""
        if not self.training or self.drop_path == 0:
            return after
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
        return x + (after - x) * (kept / (1 - self.drop_path)).to(x.dtype)


class CrossAttentionBlock(nn.Module):
    """Decoder block of CrossMAE; optionally with self-attention between the queries in front (an ablation)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads = config.decoder_width, config.decoder_heads
        if config.decoder_self_attention:
            self.norm0 = nn.LayerNorm(width, eps=config.norm_eps)
            self.self_attn = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attn = CrossAttention(width, config.encoder_width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.hidden_layer)
        self.attends_to_itself = config.decoder_self_attention

    def forward(
        self, x: Tensor, keys_and_values: Tensor, ids: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Queries ``(B, Q, D)``, or table ``(N, D)`` and ids ``(B, Q)``; others as ``cross_attention`` takes them."""
        if self.attends_to_itself:
            if ids is not None:
                # Self-attention depends on who else is predicted, so nothing can be shared between images.
                x, ids = x[ids], None
            x = self.self_attn(x, self.norm0)
        return self.mlp(self.cross_attn(x, self.norm1, keys_and_values, ids, shift), self.norm2)


def run_block(block: nn.Module, checkpointed: bool, *arguments: Tensor | None) -> Tensor:
    """The block's output; ``checkpointed`` keeps nothing but the arguments and computes the block again in backward."""
    if checkpointed and block.training and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


def to_residual(x: Tensor, config: Config) -> Tensor:
    """``x`` in the dtype of the residual between blocks, see ``Config.residual``."""
    device = x.device.type
    if config.residual == "autocast" and autocasts(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def initialize(module: nn.Module) -> None:
    """Initialisation of MAE (its appendix A.1): Xavier-uniform linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def learned_token(width: int) -> nn.Parameter:
    """A class or mask token ``(1, 1, width)``, N(0, 0.02^2)."""
    return nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
