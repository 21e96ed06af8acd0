"""Pictures: reconstructions, learning curves, decode cost. Needs matplotlib, which is imported when one is drawn."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from crossmae.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, Any]":
    """A figure of ``width x height`` inches and its ``(rows, columns)`` array of axes; shown on no screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib: pip install 'crossmae-kernels[figures]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def write_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")


def draw_reconstructions(columns: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """A grid of pictures: one column per name, one row per image; each column ``(N, C, H, W)``, one or three channels.

    All pictures of a row share one brightness scale, that of its first. NaN is drawn as grey: what was hidden.
    """
    rows = len(next(iter(columns.values())))
    figure, axes = new_figure(rows, len(columns), 1.5 * len(columns), 1.55 * rows + 0.3)
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=8)
        for row, image in enumerate(images):
            first = next(iter(columns.values()))[row]
            low, high = float(first.min()), float(first.max())
            pixels = ((image.detach() - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).cpu().nan_to_num(0.5)
            axes[row, column].imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].set_axis_off()
    write_figure(figure, path)


def draw_learning(
    losses: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Mapping[int, float]],
    levels: Mapping[str, float],
    path: str | os.PathLike[str],
) -> None:
    """Loss by step, smoothed, and kNN accuracy of frozen features by step, with levels to compare with."""
    figure, axes = new_figure(1, 2, 10, 3.8)
    left, right = axes[0]
    for name, values in losses.items():
        smooth, average = [], values[0]
        for value in values:
            average += 0.1 * (value - average)
            smooth.append(average)
        left.plot(range(1, len(values) + 1), smooth, label=name)
    left.set(xlabel="step", ylabel="loss (moving average)", title="pretraining loss")
    left.legend()
    for name, points in accuracies.items():
        right.plot(list(points), [100 * value for value in points.values()], marker="o", label=name)
    for style, (name, value) in zip(("--", ":"), levels.items(), strict=False):
        right.axhline(100 * value, color="grey", linestyle=style, label=name)
    right.set(xlabel="step", ylabel="kNN accuracy, %", title="frozen features, held-out images")
    right.legend()
    write_figure(figure, path)


def draw_cost(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Bars of decoder GMAC per model, MAE and CrossMAE by prediction ratio, one panel per image size.

    ``rows`` are those of ``flops.cost_table``; each CrossMAE bar carries MAE's cost over its own.
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
