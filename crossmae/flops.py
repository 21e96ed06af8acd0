"""Cost in closed form, mainly the decoder's: arithmetic, in the two conventions it is reported in, and memory.

A multiply-accumulate (MAC) is one product in any matrix multiplication: linear layers, attention scores, attention
averages, mixing of feature maps. As usual in the field, norms, activations and the loss are not counted.
"""

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from crossmae.masking import mask_counts
from crossmae.model.config import Config, named_config

Part = Literal[
    "embedding", "mixing", "self_attention", "query", "key_value", "attention", "attention_output", "mlp", "head"
]


def decoder_parts(config: Config, prediction_ratio: float = 0.25, mask_ratio: float = 0.75) -> dict[Part, int]:
    """MACs per image in each part of the decoder.

    Every predicted patch counts its own query in every block, as in the paper; ``executed_decoder_macs`` subtracts what
    sharing the first block's queries saves. MAE decodes all patches whatever the prediction ratio.
    """
    if config.decoder is None:
        raise ValueError("the model has no decoder to count")
    visible, predicted = mask_counts(config.patches, mask_ratio, prediction_ratio)
    keys, tokens = visible + config.class_tokens, config.patches + config.decoder_class_tokens
    width, features = config.decoder_width, config.encoder_width
    hidden, blocks = int(width * config.mlp_ratio), config.decoder_depth
    if config.decoder == "mae":
        return {
            "embedding": (visible + config.decoder_class_tokens) * features * width,
            "self_attention": blocks * _self_attention_linears(tokens, width),
            "attention": blocks * 2 * tokens**2 * width,
            "mlp": blocks * 2 * tokens * width * hidden,
            "head": tokens * width * config.patch_values,
        }
    parts: dict[Part, int] = {
        "mixing": keys * features * len(config.feature_maps or ()) * blocks,
        "query": blocks * predicted * width**2,
        "key_value": blocks * 2 * keys * features * width,
        "attention": blocks * 2 * predicted * keys * width,
        "attention_output": blocks * predicted * width**2,
        "mlp": blocks * 2 * predicted * width * hidden,
        "head": predicted * width * config.patch_values,
    }
    if config.decoder_self_attention:
        parts["self_attention"] = blocks * _self_attention_linears(predicted, width)
        parts["attention"] += blocks * 2 * predicted**2 * width
    return parts


def _self_attention_linears(tokens: int, width: int) -> int:
    """Query, key, value and output projections."""
    return 4 * tokens * width**2


def decoder_macs(model: Config | nn.Module, prediction_ratio: float = 0.25, mask_ratio: float = 0.75) -> int:
    """MACs per image of a decoder's forward pass, for a configuration or a model that has one."""
    return sum(decoder_parts(_config(model), prediction_ratio, mask_ratio).values())


def encoder_macs(config: Config, mask_ratio: float = 0.75) -> int:
    """MACs per image of an encoder's forward pass, which sees the visible patches alone."""
    visible, _ = mask_counts(config.patches, mask_ratio, mask_ratio)
    tokens, width = visible + config.class_tokens, config.encoder_width
    block = _self_attention_linears(tokens, width) + 2 * tokens**2 * width
    block += 2 * tokens * width * int(width * config.mlp_ratio)
    return visible * config.patch_values * width + config.encoder_depth * block


def decoder_flops_of_paper(model: Config | nn.Module, prediction_ratio: float = 0.25, mask_ratio: float = 0.75) -> int:
    """FLOPs per image as CrossMAE's paper counts them: two per MAC, without those of attention itself.

    The convention is inferred from the paper's chart; it yields the "2.5 to 3.7 times" of its abstract.
    """
    parts = decoder_parts(_config(model), prediction_ratio, mask_ratio)
    return 2 * (sum(parts.values()) - parts["attention"])


def executed_decoder_macs(
    model: Config | nn.Module, batch: int, prediction_ratio: float = 0.25, mask_ratio: float = 0.75
) -> int:
    """MACs that our decoder executes for a batch.

    Fewer than ``batch * decoder_macs``: the first block's queries are one table of all patches, projected once.
    """
    config = _config(model)
    macs = batch * decoder_macs(config, prediction_ratio, mask_ratio)
    if config.decoder == "mae" or config.decoder_self_attention:
        return macs
    _, predicted = mask_counts(config.patches, mask_ratio, prediction_ratio)
    return macs - (batch * predicted - config.patches) * config.decoder_width**2


def decoder_saved_bytes(
    model: Config | nn.Module, prediction_ratio: float = 0.25, mask_ratio: float = 0.75, element_size: int = 2
) -> int:
    """Bytes per image that CrossMAE's decoder saves for the backward pass with kernels, under 16-bit autocast.

    Excludes the feature maps, which come from the encoder, and everything shared by all images (weights, and the first
    block's queries). Counts, for each token that a linear layer multiplies, its normalised input and a float32
    statistic; queries, keys, values and attention outputs; and hidden layers only with ``hidden_layer="save"``.
    """
    config = _config(model)
    if config.decoder != "crossmae" or config.feature_maps is None or config.decoder_self_attention:
        raise ValueError("the closed form is for CrossMAE with inter-block attention and no decoder self-attention")
    visible, predicted = mask_counts(config.patches, mask_ratio, prediction_ratio)
    keys, blocks = visible + config.class_tokens, config.decoder_depth
    row, statistic = config.decoder_width * element_size, 4
    normed = blocks if config.last_mix_norm else blocks - 1
    mixes = keys * (blocks * config.encoder_width * element_size + normed * 2 * statistic)
    keys_and_values = blocks * keys * 2 * row
    queries = (blocks - 1) * predicted * (2 * row + statistic)
    attended = blocks * predicted * row
    into_mlp = blocks * predicted * (row + statistic)
    hidden = blocks * predicted * int(config.decoder_width * config.mlp_ratio) * element_size
    into_head = predicted * (row + statistic)
    ids = predicted * 8
    kept = mixes + keys_and_values + queries + attended + into_mlp + into_head + ids
    return kept + (hidden if config.hidden_layer == "save" else 0)


def _config(model: Config | nn.Module) -> Config:
    config = model if isinstance(model, Config) else getattr(model, "config", None)
    if not isinstance(config, Config):
        raise TypeError(f"expected a Config or a model of this package, got {type(model).__name__}")
    return config


PAPER_SIZES = ("small_patch16", "base_patch16", "large_patch16", "huge_patch14")


def cost_table(
    image_sizes: Iterable[int] = (224, 448), prediction_ratios: Iterable[float] = (0.25, 0.5, 0.75)
) -> list[dict[str, Any]]:
    """One row per model, image size and prediction ratio: decoder cost of CrossMAE and MAE in both conventions."""
    rows = []
    ratios = list(prediction_ratios)
    for image_size in image_sizes:
        for size in PAPER_SIZES:
            mae = named_config(f"mae_vit_{size}", image_size)
            ours = named_config(f"crossmae_vit_{size}", image_size)
            for ratio in ratios:
                macs, flops = decoder_macs(ours, ratio), decoder_flops_of_paper(ours, ratio)
                rows.append(
                    {
                        "model": f"ViT-{size[0].upper()}/{ours.patch_size}",
                        "image": image_size,
                        "prediction ratio": ratio,
                        "MAE GMAC": decoder_macs(mae) / 1e9,
                        "CrossMAE GMAC": macs / 1e9,
                        "ratio": decoder_macs(mae) / macs,
                        "MAE GFLOP (paper)": decoder_flops_of_paper(mae) / 1e9,
                        "CrossMAE GFLOP (paper)": flops / 1e9,
                        "ratio (paper)": decoder_flops_of_paper(mae) / flops,
                    }
                )
    return rows
