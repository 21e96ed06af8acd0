"""A vision transformer in the plainest terms, in float64, from tensors under the names of MAE and timm."""

import torch
import torch.nn.functional as F


def features(weights, images, heads, eps=1e-6):
    """Tokens ``(B, L + 1, E)`` behind the last block, and behind the final norm if there is one."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    sides = w["patch_embed.proj.weight"].shape[2:]
    x = F.conv2d(images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=sides)
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]
    for i in range(sum(name.endswith(".norm1.weight") and name.startswith("blocks.") for name in w)):
        block = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, heads, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        attended = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(attended, f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm") if "norm.weight" in w else x
