"""A masked autoencoder in the plainest terms: loops over images and blocks, tokens dropped after embedding."""

import torch
import torch.nn.functional as F


def plain(model, images, masking):
    """Loss and predictions of a model for images ``(B, C, H, W)`` and a mask, differentiable by its parameters."""
    config, state = model.config, dict(model.state_dict(keep_vars=True))

    def norm(x, name):
        eps = config.norm_eps
        if name.startswith("decoder.") and config.decoder_norm_eps is not None:
            eps = config.decoder_norm_eps
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attend(q, k, v, heads):
        parts = []
        for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            parts.append((q_h @ k_h.T / q_h.shape[-1] ** 0.5).softmax(-1) @ v_h)
        return torch.cat(parts, -1)

    def mlp(x, name):
        return x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def self_attention(x, name, norm_name, heads):
        q, k, v = linear(norm(x, norm_name), f"{name}.qkv").chunk(3, -1)
        return x + linear(attend(q, k, v, heads), f"{name}.proj")

    high, wide = config.patch_size if isinstance(config.patch_size, tuple) else (config.patch_size, config.patch_size)
    rows, columns = config.image_size[0] // high, config.image_size[1] // wide
    first = config.class_tokens
    class_tokens = state["encoder.cls_token"][0]
    # As in the releases unless the configuration says so.
    if config.no_embed_class is False or (config.no_embed_class is None and config.decoder == "mae"):
        class_tokens = class_tokens + state["encoder.positions"][0, :first]
    final_norm = config.feature_maps is None if config.final_norm is None else config.final_norm
    total, predictions = 0.0, []
    for image, visible, predicted in zip(images, masking.visible_ids, masking.predicted_ids, strict=True):
        embedded = F.conv2d(
            image[None], state["encoder.patch_embed.weight"], state["encoder.patch_embed.bias"], stride=(high, wide)
        )
        tokens = embedded.flatten(2)[0].T + state["encoder.positions"][0, first:]
        x = torch.cat([class_tokens, tokens[visible]])
        maps = [x]
        for i in range(config.encoder_depth):
            x = self_attention(x, f"encoder.blocks.{i}.attn", f"encoder.blocks.{i}.norm1", config.encoder_heads)
            x = mlp(x, f"encoder.blocks.{i}")
            maps.append(x)
        if final_norm:
            maps[-1] = norm(x, "encoder.norm")
        positions = state["decoder.positions"][0]
        if config.decoder == "mae":
            seen = linear(maps[-1], "decoder.embed")
            y = state["decoder.mask_token"][0].repeat(rows * columns, 1).index_put((visible,), seen[first:])
            if config.decoder_class_token:
                y = torch.cat([seen[:first], y])
            y = y + positions
        else:
            y = state["decoder.mask_token"][0] + positions[first:][predicted]
        for i in range(config.decoder_depth):
            block = f"decoder.blocks.{i}"
            if config.decoder == "mae":
                y = self_attention(y, f"{block}.attn", f"{block}.norm1", config.decoder_heads)
            else:
                if config.feature_maps is None:
                    features = maps[-1]
                else:
                    weights = state["decoder.mixing.weight"][i]
                    features = sum(w * maps[j] for w, j in zip(weights, config.feature_maps, strict=True))
                    if config.last_mix_norm or i < config.decoder_depth - 1:
                        features = norm(features, f"decoder.mixing.norms.{i}")
                if config.decoder_self_attention:
                    y = self_attention(y, f"{block}.self_attn", f"{block}.norm0", config.decoder_heads)
                k, v = linear(features, f"{block}.cross_attn.kv").chunk(2, -1)
                q = linear(norm(y, f"{block}.norm1"), f"{block}.cross_attn.q")
                y = y + linear(attend(q, k, v, config.decoder_heads), f"{block}.cross_attn.proj")
            y = mlp(y, block)
        y = linear(norm(y, "decoder.norm"), "decoder.head")
        predictions.append(y[-rows * columns :][predicted] if config.decoder == "mae" else y)
        tiles = image.unfold(1, high, high).unfold(
            2, wide, wide
        )  # (channel, row of patches, column of patches, row, column)
        order = (1, 2, 3, 4, 0) if config.pixel_order == "hwc" else (1, 2, 0, 3, 4)
        tiles = tiles.permute(order).reshape(rows * columns, -1)[predicted]
        if config.normalize_targets:
            tiles = (tiles - tiles.mean(-1, keepdim=True)) / (tiles.var(-1, keepdim=True) + 1e-6).sqrt()
        total = total + ((predictions[-1] - tiles) ** 2).mean()
    return total / len(images), torch.stack(predictions)
