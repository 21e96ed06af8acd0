"""The parts that encoder and decoders are made of: attention and MLP with their norms and residuals."""

import torch
from torch import Tensor, nn

import crossmae_kernels as ck

NORM_EPS = 1e-6


def layer_norm(width: int) -> nn.LayerNorm:
    """The LayerNorm of MAE and CrossMAE."""
    return nn.LayerNorm(width, eps=NORM_EPS)


class SelfAttention(nn.Module):
    """``x + proj(attention(qkv(norm(x))))``; the norm belongs to the caller's block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        qkv = ck.norm_linear(x, self.qkv.weight, self.qkv.bias, norm.weight, norm.bias, norm.eps)
        query, key, value = qkv.chunk(3, dim=-1)
        attended = ck.cross_attention(query, key, value, self.heads)
        return ck.linear_residual(attended, self.proj.weight, self.proj.bias, residual=x)


class CrossAttention(nn.Module):
    """``x + proj(attention(q(norm(x)), kv(features)))``; the norm belongs to the caller's block.

    Keys and values come projected: those of all blocks are computed at once (``CrossDecoder.keys_and_values``).
    """

    def __init__(self, width: int, feature_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(feature_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm, keys_and_values: Tensor, ids: Tensor | None = None) -> Tensor:
        """Queries ``(B, Q, D)``, or table ``(N, D)`` and ids ``(B, Q)``; ``(B, K, 2 D)`` -> ``(B, Q, D)``."""
        query = ck.norm_linear(x, self.q.weight, self.q.bias, norm.weight, norm.bias, norm.eps)
        key, value = keys_and_values.chunk(2, dim=-1)
        attended = ck.cross_attention(query, key, value, self.heads, query_ids=ids)
        return ck.linear_residual(attended, self.proj.weight, self.proj.bias, residual=x, residual_ids=ids)


class Mlp(nn.Module):
    """``x + fc2(gelu(fc1(norm(x))))``; the norm belongs to the caller's block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        fc1, fc2 = self.fc1, self.fc2
        return ck.mlp(x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps)


class SelfAttentionBlock(nn.Module):
    """Pre-norm transformer block of the encoder and of MAE's decoder."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, T, D)``."""
        return self.mlp(self.attn(x, self.norm1), self.norm2)


class CrossAttentionBlock(nn.Module):
    """Decoder block of CrossMAE; optionally with self-attention between the queries in front (an ablation)."""

    def __init__(self, width: int, feature_width: int, heads: int, mlp_ratio: float, self_attention: bool) -> None:
        super().__init__()
        if self_attention:
            self.norm0 = layer_norm(width)
            self.self_attn = SelfAttention(width, heads)
        self.norm1 = layer_norm(width)
        self.cross_attn = CrossAttention(width, feature_width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.attends_to_itself = self_attention

    def forward(self, x: Tensor, keys_and_values: Tensor, ids: Tensor | None = None) -> Tensor:
        """Queries ``(B, Q, D)``, or table ``(N, D)`` and ids ``(B, Q)``; ``(B, K, 2 D)`` -> ``(B, Q, D)``."""
        if self.attends_to_itself:
            if ids is not None:
                # Self-attention depends on who else is predicted, so nothing can be shared between images.
                x, ids = x[ids], None
            x = self.self_attn(x, self.norm0)
        return self.mlp(self.cross_attn(x, self.norm1, keys_and_values, ids), self.norm2)


def initialize(module: nn.Module) -> None:
    """Initialisation of MAE (its appendix A.1): Xavier-uniform linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def learned_token(width: int) -> nn.Parameter:
    """A class or mask token ``(1, 1, width)``, N(0, 0.02^2)."""
    return nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
