"""ViTDet's backbone in the plainest terms, in float64, window by window, from the tensors of an ``Encoder``."""

import torch
import torch.nn.functional as F


def last_map(weights, images, heads, grid, window, seeing_all, eps=1e-6):
    """The last block's output ``(B, E, rows, columns)``.

    A patch that pads a window is zero behind the norm, as ViTDet's release has it; all within a window see each other.
    """
    w = weights
    rows, columns = grid

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attention(x, block):
        """Patches of one window ``(B, T, E)``, all of which see each other."""
        q, k, v = linear(x, f"{block}.attn.qkv").unflatten(-1, (3, heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)

    side = w["patch_embed.weight"].shape[-1]
    x = F.conv2d(images, w["patch_embed.weight"], w["patch_embed.bias"], stride=side).flatten(2).transpose(1, 2)
    x = (x + w["positions"]).unflatten(1, grid)
    for i in range(sum(name.endswith(".norm1.weight") for name in w)):
        block = f"blocks.{i}"
        normed = norm(x, f"{block}.norm1")
        if i in seeing_all:
            attended = attention(normed.flatten(1, 2), block).unflatten(1, grid)
        else:
            padded = F.pad(normed, (0, 0, 0, -columns % window, 0, -rows % window))
            strips = []
            for top in range(0, rows, window):
                parts = [padded[:, top : top + window, left : left + window] for left in range(0, columns, window)]
                strips.append(
                    torch.cat([attention(p.flatten(1, 2), block).unflatten(1, p.shape[1:3]) for p in parts], 2)
                )
            attended = torch.cat(strips, 1)[:, :rows, :columns]
        x = x + linear(attended, f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return x.permute(0, 3, 1, 2)
