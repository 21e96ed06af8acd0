"""The benchmark's rows as a table and a picture."""

import os
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from crossmae.benchmark.decode import Row
from crossmae.figures import new_figure, write_figure

HEADERS = [
    "decoder",
    "blocks",
    "predicts",
    "GMAC per image",
    "GMAC counted",
    "times fewer MACs than MAE",
    "forward, ms",
    "fwd + bwd, ms",
    "speed-up over MAE, forward",
    "speed-up over MAE, fwd + bwd",
    "saved for backward, MiB per image",
]


def table(rows: Iterable[Row]) -> str:
    """A Markdown table; values not measured are empty cells, and columns without any values are left out."""
    cells = [
        [
            row.name,
            str(row.blocks),
            "all" if row.decoder == "MAE" else f"{row.predicts:g}",
            _giga(row.macs),
            row.counted and _giga(row.counted),
            row.fewer and f"{row.fewer:.2f}",
            row.forward and _milliseconds(row.forward),
            row.both and _milliseconds(row.both),
            row.forward_speedup and f"{row.forward_speedup:.2f}",
            row.both_speedup and f"{row.both_speedup:.2f}",
            row.saved and f"{row.saved / 2**20:.1f}",
        ]
        for row in rows
    ]
    shown = [column for column in range(len(HEADERS)) if any(row[column] for row in cells)]
    headers = [HEADERS[column] for column in shown]
    body = [[row[column] for column in shown] for row in cells]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def _giga(macs: float) -> str:
    return f"{macs / 1e9:.3f}" if macs >= 1e8 else f"{macs / 1e9:.3g}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.02 else f"{seconds * 1e3:.3g}"


def draw(rows: Sequence[Row], title: str, path: str | os.PathLike[str], labelled: str | None = None) -> None:
    """Plot speed-up against MAC ratio, forward and backward: on the diagonal a MAC costs as much as MAE's.

    Args:
        rows: ones without a speed-up are left out.
        title: what all rows have in common.
        path: where to write the PNG.
        labelled: the formulation whose points are labelled with blocks and prediction ratio; by default the first.
    """
    points = [(row.fewer, row.both_speedup, row) for row in rows if row.fewer and row.both_speedup]
    if not points:
        raise ValueError("nothing was timed, so there is nothing to draw")
    figure, axes = new_figure(1, 1, 7.5, 5.2)
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = axes[0, 0]
    low, limit = 0.87 * min(0.8, *(min(p[:2]) for p in points)), 1.15 * max(max(p[:2]) for p in points)
    axis.plot([low, limit], [low, limit], color="grey", linestyle="--", label="time follows MACs")
    every = list(dict.fromkeys(row.means for *_, row in points))
    for index, means in enumerate(every):
        for decoder, marker in (("MAE", "s"), ("CrossMAE", "o")):
            series = [p for p in points if (p[2].means, p[2].decoder) == (means, decoder)]
            if not series:
                continue
            style = {"linestyle": "", "marker": marker, "color": f"C{index}", "label": series[0][2].name}
            axis.plot([p[0] for p in series], [p[1] for p in series], **style)
            for fewer, factor, row in series if means == (every[0] if labelled is None else labelled) else []:
                text = "MAE" if decoder == "MAE" else f"blocks {row.blocks}, predicts {row.predicts:g}"
                right = decoder == "MAE" or fewer > limit**0.6
                place = {"xytext": (-7 if right else 7, -3), "ha": "right" if right else "left"}
                axis.annotate(text, (fewer, factor), textcoords="offset points", fontsize=8, **place)
    axis.set(xscale="log", yscale="log", xlabel="times fewer MACs than MAE", ylabel="speed-up over MAE")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())
    axis.set_title(f"Decoding, forward + backward\n{title}", fontsize=8)
    axis.legend(fontsize=8)
    write_figure(figure, path)
