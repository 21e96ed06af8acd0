"""Every op as it is defined, step by step, in whatever dtype comes; nothing here is shared with the references."""

from functools import partial

import torch


def oracle_of(problem):
    """What answers a problem exactly, called as the op is."""
    return partial(ORACLES[problem.op], **problem.options)


def naive_norm(x, scale, shift, eps):
    """LayerNorm."""
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def naive_linear(x, weight, bias):
    out = torch.einsum("...i,oi->...o", x, weight)
    return out if bias is None else out + bias


def naive_gelu(x):
    return x * torch.special.ndtr(x)


def picked(table, ids):
    """Rows one by one."""
    if ids is None:
        return table
    rows = [torch.stack([table[i] for i in image]) for image in ids.tolist() if image]
    return torch.stack(rows) if rows else table.new_zeros(*ids.shape, table.shape[-1]) + 0 * table.sum()


def attention(query, key, value, num_heads, query_ids=None, scale=None):
    """Head by head."""
    query = picked(query, query_ids)
    width = key.shape[-1] // num_heads
    scale = 1 / width**0.5 if scale is None else scale
    heads = []
    for head in range(num_heads):
        at = slice(head * width, (head + 1) * width)
        scores = scale * torch.einsum("bqd,bkd->bqk", query[..., at], key[..., at])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(torch.einsum("bqk,bkd->bqd", weights, value[..., at]))
    return torch.cat(heads, -1)


def attention_kvpacked(query, key_value, num_heads, query_ids=None, scale=None):
    return attention(query, *key_value.chunk(2, -1), num_heads, query_ids, scale)


def attention_qkvpacked(query_key_value, num_heads, scale=None):
    return attention(*query_key_value.chunk(3, -1), num_heads, scale=scale)


def fold(weight, bias, norm_weight, norm_bias, dtype=None):
    """What the layer makes of the norm's shift alone, and of each unit vector times the norm's scale."""
    weight = torch.stack(weight) if isinstance(weight, list) else weight
    inner = weight.shape[-1]
    units = torch.eye(inner, dtype=weight.dtype, device=weight.device)
    units = units if norm_weight is None else units * norm_weight.unsqueeze(-2)
    folded = torch.einsum("...oi,...ui->...ou", weight, units.expand(*weight.shape[:-2], inner, inner))
    if norm_bias is not None:
        shift = torch.einsum("...oi,...i->...o", weight, norm_bias)
        bias = shift if bias is None else bias + shift
    return folded, bias


def norm_linear(x, weight, bias, norm_weight, norm_bias, eps, activation):
    out = naive_linear(naive_norm(x, norm_weight, norm_bias, eps), weight, bias)
    return naive_gelu(out) if activation else out


def linear_residual(x, weight, bias, residual, residual_ids=None):
    return picked(residual, residual_ids) + naive_linear(x, weight, bias)


def mlp(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, hidden):
    inside = naive_gelu(naive_linear(naive_norm(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias))
    return x + naive_linear(inside, fc2_weight, fc2_bias)


def mixing(maps, weight, norm_weight, norm_bias, eps, normalize):
    """One decoder block and one map at a time."""
    mixes = []
    for block, row in enumerate(weight):
        mix = torch.zeros_like(maps[0])
        for factor, feature_map in zip(row, maps, strict=True):
            mix = mix + factor * feature_map
        affine = [None if t is None else t[block] for t in (norm_weight, norm_bias)]
        mixes.append(naive_norm(mix, *affine, eps) if normalize else mix)
    return torch.stack(mixes)


def projection(maps, mixing_weight, norm_weight, norm_bias, weights, biases, eps):
    mixes = mixing(maps, mixing_weight, norm_weight, norm_bias, eps, normalize=True)
    return [naive_linear(*layer) for layer in zip(mixes, weights, biases, strict=True)]


def patches(images, ids, patch_size, mean=None, std=None):
    """Patch by patch; with statistics in float64."""
    high, wide = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    across = images.shape[3] // wide
    rows = []
    for image, chosen in zip(images, ids.tolist(), strict=True):
        for index in chosen:
            top, left = high * (index // across), wide * (index % across)
            rows.append(image[:, top : top + high, left : left + wide].permute(1, 2, 0))
    found = torch.stack(rows)
    if mean is not None:
        found = (found.double() / 255 - mean.double()) / std.double()
    return found.reshape(*ids.shape, -1)


def loss(prediction, images, predicted_ids, patch_size, normalize, reduction, mean=None, std=None):
    target = patches(images.double(), predicted_ids, patch_size, mean, std)
    if normalize:
        centred = target - target.sum(-1, keepdim=True) / target.shape[-1]
        variance = (centred * centred).sum(-1, keepdim=True) / (target.shape[-1] - 1)
        target = centred * (variance + 1e-6) ** -0.5
    losses = ((prediction - target) ** 2).sum(-1) / target.shape[-1]
    return losses.sum() / losses.numel() if reduction == "mean" else losses


ORACLES = {
    "cross_attention": attention,
    "cross_attention_kvpacked": attention_kvpacked,
    "fold_norm": fold,
    "gather_patches": patches,
    "linear_residual": linear_residual,
    "mix_feature_maps": mixing,
    "mlp": mlp,
    "norm_linear": norm_linear,
    "patch_loss": loss,
    "project_feature_maps": projection,
    "self_attention_qkvpacked": attention_qkvpacked,
}
