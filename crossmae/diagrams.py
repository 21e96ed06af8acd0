"""Diagrams of a configuration: what its decoder decodes compared with MAE's, and the decoder's structure."""

import os
from typing import Any

import torch
from torch import Tensor

from crossmae.figures import write_figure
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, mask_counts, random_masking
from crossmae.model.config import Config
from crossmae.reconstruction import visible_part
from crossmae_kernels.extras import require

MASK_RATIO = 0.75
PREDICTION_RATIOS = (0.25, 0.5, 0.75)
SEEN, DECODED, FAINT = "#4c78a8", "#e45756", "#8a8a8a"


def draw_decoders(image: Tensor, crossmae: Config, mae: Config, path: str | os.PathLike[str]) -> None:
    """Draw what the encoder sees of an image, what MAE's and CrossMAE's decoders decode, and what that costs.

    Args:
        image: ``(3, H, W)`` of the configurations' size, in [0, 1].
        crossmae: predicts a quarter of all patches in the picture, and more in the bars.
        mae: the same encoder with MAE's decoder.
        path: where to write the PNG, about 900 pixels wide.
    """
    require("figures", "matplotlib")
    from matplotlib.figure import Figure

    masking = random_masking(1, crossmae.patches, MASK_RATIO, PREDICTION_RATIOS[0], generator=_generator())
    total, seen, predicted = crossmae.patches, masking.visible_ids.shape[1], masking.predicted_ids.shape[1]
    everything = torch.arange(total)[None]
    figure = Figure(figsize=(8.2, 4.3), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.5, 1.8))
    panels, bars = parts
    titles = (
        f"the image\n{total} patches",
        f"the encoder sees {1 - MASK_RATIO:.0%}\n{seen} patches",
        f"MAE decodes all\n{total} patches, each attends to all",
        f"CrossMAE decodes {PREDICTION_RATIOS[0]:.0%}\n{predicted} patches, from the {seen} seen",
    )
    shown = ((everything, None), (masking.visible_ids, SEEN), (everything, DECODED), (masking.predicted_ids, DECODED))
    for axis, title, (ids, colour) in zip(panels.subplots(1, 4), titles, shown, strict=True):
        part = visible_part(image[None], Masking(ids, ids[:, :0], total), crossmae)[0]
        axis.imshow(part.nan_to_num(0.93).permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=8.5)
        axis.axis("off")
        if colour is not None:
            _outline(axis, ids[0], crossmae, colour)
    costs = {f"MAE, {mae.decoder_depth} blocks, all": decoder_macs(mae, MASK_RATIO) / 1e9}
    for ratio in reversed(PREDICTION_RATIOS):
        costs[f"CrossMAE, {crossmae.decoder_depth} blocks, {ratio:.0%}"] = decoder_macs(crossmae, ratio) / 1e9
    baseline = next(iter(costs.values()))
    axis = bars.subplots()
    drawn = axis.barh(range(len(costs)), costs.values(), 0.66, color=[FAINT, *["#f2b5b4"] * 2, DECODED])
    words = [f"{baseline:.2f}"]
    words += [f"{cost:.2f}   {baseline / cost:.2f} times fewer" for cost in list(costs.values())[1:]]
    axis.bar_label(drawn, words, padding=4, fontsize=9)
    axis.set_yticks(range(len(costs)), costs, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.34 * baseline)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("multiply-accumulates of the decoder for an image, forward, in 10⁹", fontsize=8.5)
    write_figure(figure, path)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def _outline(axis: Any, ids: Tensor, config: Config, colour: str) -> None:
    """Outline the given patches."""
    from matplotlib.patches import Rectangle

    height, width = (size // count for size, count in zip(config.image_size, config.grid, strict=True))
    for place in ids.tolist():
        row, column = divmod(place, config.grid[1])
        axis.add_patch(
            Rectangle((column * width, row * height), width - 1, height - 1, fill=False, edgecolor=colour, lw=0.9)
        )


def draw_architecture(config: Config, path: str | os.PathLike[str], prediction_ratio: float = 0.25) -> None:
    """Draw CrossMAE's decoder with the tensor shapes for one image: feature maps, mixes, queries, blocks, pixels.

    Raises ValueError unless it is a CrossMAE with inter-block attention.
    """
    if config.decoder != "crossmae" or config.feature_maps is None or config.decoder_self_attention:
        raise ValueError("the diagram needs a CrossMAE decoder with inter-block attention and no self-attention")
    require("figures", "matplotlib")
    from matplotlib.figure import Figure

    seen, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)
    keys, features, width = seen + config.class_tokens, config.encoder_width, config.decoder_width
    maps, blocks, hidden = len(config.feature_maps), config.decoder_depth, int(width * config.mlp_ratio)
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(-1, 101), ylim=(-1, 52))
    axis.axis("off")
    blue, red, grey = "#dbe7f3", "#fbe0df", "#eeeeee"
    # Left to right: the encoder, the mixes of its maps, one decoder block, its output.
    _box(
        axis,
        0,
        16,
        19,
        22,
        f"encoder\n{config.encoder_depth} blocks\n\n{maps} feature maps\nof {keys} x {features}",
        blue,
    )
    _box(axis, 26, 20, 19, 14, f"mixing\n{blocks} x {maps} learned weights\nLayerNorm of each mix", blue)
    _box(axis, 26, 2, 19, 11, f"mask token + positions\n{predicted} queries of {width}", grey)
    _box(axis, 52, 0, 29, 47, "", "#ffffff")
    axis.text(66.5, 49.5, f"one of {blocks} decoder blocks", ha="center", va="center", fontsize=9)
    _box(axis, 54, 24, 25, 20, f"cross-attention, {config.decoder_heads} heads\n\nkeys and values from the mix\n"
         f"{keys} x {features} → {keys} x {width} each\nqueries {predicted} x {width}", red)  # fmt: skip
    _box(axis, 54, 3, 25, 13, f"MLP\n{width} → {hidden} → {width}\nof {predicted} queries", red)
    _box(axis, 86, 4, 14, 11, f"norm, head\n{width} → {config.patch_values}", grey)
    _box(axis, 86, 24, 14, 13, f"prediction\n{predicted} patches\nof {config.patch_values} values", grey)
    for start, end in (
        ((19, 27), (26, 27)),
        ((45, 28), (54, 31)),
        ((45, 9), (54, 27)),
        ((66.5, 24), (66.5, 16)),
        ((79, 9.5), (86, 9.5)),
        ((93, 15), (93, 24)),
        ((10, 9.5), (10, 16)),
    ):
        axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "lw": 1.3})
    class_tokens = f"+ {config.class_tokens} class token{'s' * (config.class_tokens != 1)}"
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    axis.text(10, 6, f"{seen} visible patches\n{class_tokens}", fontsize=8.5, **centred)
    note = "every block attends to its own mix;\nqueries do not see each other"
    axis.text(22.5, 45, note, fontsize=9, style="italic", **centred)
    write_figure(figure, path)


def _box(axis: Any, left: float, bottom: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box with centred text."""
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=1.2"
    axis.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=colour, edgecolor="#555555"))
    axis.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=8.5)
