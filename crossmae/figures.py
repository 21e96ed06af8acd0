"""Pictures: reconstructions, learning curves, decode cost. Needs matplotlib, which is imported on first use."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossmae.files import replacing
from crossmae_kernels.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For grids of pictures, in pixels: the size that small ones are enlarged to, gap, title height, title font.
PICTURE_PIXELS = 160
GAP = 4
TITLE = 24
FONT = 13
HALF_LEVEL = 0.5 / 255
NAMED_CLASSES = 40
DARK = 1 / 8  # above the brightest 12-bit value stored in 16 bits, below any photograph's brightest pixel


def new_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, Any]":
    """A figure of ``width x height`` inches and its ``(rows, columns)`` array of axes, without a display."""
    require("figures", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def write_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")


def draw_reconstructions(columns: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Draw a grid of pictures: one column per name, one row per image; each column ``(N, C, H, W)``, floating point.

    Small pictures are enlarged by an integer factor, without interpolation. One channel is drawn as grey, the first of
    two as well, and the first three of more as RGB. If a row's first picture is within [0, 1], up to half a grey level,
    0 is black and 1 is white, unless it is very dark; otherwise the range is that of the row's first picture. NaN, used
    for hidden patches, is grey.
    """
    require("figures", "PIL")
    from PIL import Image, ImageDraw

    originals = next(iter(columns.values()))
    height, width = originals.shape[2:]
    scale = max(1, PICTURE_PIXELS // max(height, width))
    height, width = height * scale, width * scale
    canvas = Image.new("RGB", (GAP + len(columns) * (width + GAP), TITLE + len(originals) * (height + GAP)), "white")
    drawing = ImageDraw.Draw(canvas)
    for column, (name, images) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        drawing.text((left + width / 2, TITLE / 2), name, fill="black", anchor="mm", font_size=FONT)
        for row, (image, original) in enumerate(zip(images, originals, strict=True)):
            picture = Image.fromarray(_drawable(image, original).numpy())
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left, TITLE + row * (height + GAP)))
    with replacing(path) as beside:
        canvas.save(beside, format="png")


def _drawable(image: Tensor, original: Tensor) -> Tensor:
    """An image ``(C, H, W)`` as RGB ``(H, W, 3)``, uint8, on the brightness scale of ``original``."""
    low, high = float(original.min()), float(original.max())
    if low > -HALF_LEVEL and high < 1 + HALF_LEVEL and (high > DARK or low == high):
        low, high = 0.0, 1.0
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    shares = ((channels.detach().float().cpu() - low) / max(high - low, 1e-9)).clamp(0, 1).nan_to_num(0.5)
    return (255 * shares).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def draw_mixing_weights(weight: Tensor, feature_map_indices: Sequence[int], path: str | os.PathLike[str]) -> None:
    """Draw a heat map of what each decoder block attends to: red is added, blue subtracted, white ignored.

    A LayerNorm follows every mix, so only proportions within a row matter; rows cannot be compared.

    Args:
        weight: ``(n, k)``, decoder blocks by feature maps: ``model.decoder.mixing.weight``.
        feature_map_indices: the map of each column, ``model.config.feature_maps``; 0 is the encoder's input.
        path: where to write the PNG.
    """
    blocks, maps = weight.shape
    figure, axes = new_figure(1, 1, 1.8 + 0.28 * maps, 0.8 + 0.28 * blocks)
    axis = axes[0, 0]
    largest = float(weight.detach().abs().max())
    heat = axis.imshow(weight.detach().float().cpu().numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.set_xticks(range(maps), feature_map_indices, fontsize=7)
    axis.set_yticks(range(blocks), range(1, blocks + 1), fontsize=7)
    axis.set_xlabel("feature map (0: encoder's input)", fontsize=8)
    axis.set_ylabel("decoder block", fontsize=8)
    bar = figure.colorbar(heat, ax=axis)
    bar.set_label("mixing weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    write_figure(figure, path)


def draw_learning(
    losses: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Mapping[int, float]],
    levels: Mapping[str, float],
    path: str | os.PathLike[str],
    titles: tuple[str, str] = ("pretraining loss", "frozen features, held-out images"),
    accuracy: str = "kNN accuracy, %",
) -> None:
    """Draw the smoothed loss and the accuracy by step, of frozen features by default, with reference levels."""
    figure, axes = new_figure(1, 2, 10, 3.8)
    left, right = axes[0]
    for name, values in losses.items():
        smooth, average = [], values[0]
        for value in values:
            average += 0.1 * (value - average)
            smooth.append(average)
        left.plot(range(1, len(values) + 1), smooth, label=name)
    left.set(xlabel="step", ylabel="loss (moving average)", title=titles[0])
    left.legend()
    for name, points in accuracies.items():
        right.plot(list(points), [100 * value for value in points.values()], marker="o", label=name)
    for style, (name, value) in zip(("--", ":"), levels.items(), strict=False):
        right.axhline(100 * value, color="grey", linestyle=style, label=name)
    right.set(xlabel="step", ylabel=accuracy, title=titles[1])
    right.legend()
    write_figure(figure, path)


def draw_confusion(counts: Tensor, classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix: the share of each class's images (rows) that is predicted as each class (columns).

    Args:
        counts: ``(classes, classes)``, by label and prediction.
        classes: their names; written beside the matrix if at most 40.
        path: where to write the PNG.
    """
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = 3.5 + min(6.0, 0.18 * len(classes))
    figure, axes = new_figure(1, 1, side + 1, side)
    axis = axes[0, 0]
    heat = axis.imshow(100 * shares.numpy(), cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    if len(classes) <= NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, fontsize=7, rotation=90)
        axis.set_yticks(range(len(classes)), classes, fontsize=7)
    correct = int(counts.trace()) / max(1, int(counts.sum()))
    axis.set(xlabel="predicted", ylabel="label", title=f"{correct:.1%} of {int(counts.sum()):,} images")
    figure.colorbar(heat, ax=axis).set_label("% of a label's images")
    write_figure(figure, path)


def draw_cost(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw bars of decoder GMAC per model, for MAE and for CrossMAE by prediction ratio, one panel per image size.

    ``rows`` come from ``flops.cost_table``; each CrossMAE bar is labelled with MAE's cost divided by its own.
    """
    sizes = sorted({row["image"] for row in rows})
    figure, axes = new_figure(1, len(sizes), 5.5 * len(sizes), 4)
    for axis, size in zip(axes[0], sizes, strict=True):
        panel = [row for row in rows if row["image"] == size]
        models = list(dict.fromkeys(row["model"] for row in panel))
        ratios = sorted({row["prediction ratio"] for row in panel})
        bar = 0.8 / (1 + len(ratios))
        mae = {row["model"]: row["MAE GMAC"] for row in panel}
        axis.bar(range(len(models)), mae.values(), bar, label="MAE, 8 blocks", color="grey")
        for offset, ratio in enumerate(ratios, start=1):
            ours = [row for row in panel if row["prediction ratio"] == ratio]
            places = [place + offset * bar for place in range(len(models))]
            bars = axis.bar(
                places, [row["CrossMAE GMAC"] for row in ours], bar, label=f"CrossMAE, 12 blocks, predicts {ratio:g}"
            )
            axis.bar_label(bars, [f"{row['ratio']:.2f}x" for row in ours], fontsize=6)
        axis.set_xticks([place + 0.4 - bar / 2 for place in range(len(models))], models)
        axis.set(title=f"{size} x {size} pixels", ylabel="decoder GMAC per image")
    axes[0, 0].legend(fontsize=8)
    write_figure(figure, path)
