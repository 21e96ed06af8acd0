"""CrossMAE's decoder beside MAE's: cost in arithmetic, in time and in memory, as a table and a picture."""

import collections
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from benchmarks.contest import BOTH, FORWARD
from benchmarks.records import Record, Run
from crossmae.figures import new_figure, write_figure

HEADERS = [
    "decoder",
    "blocks",
    "predicts",
    "GMAC per image",
    "times fewer MACs than MAE",
    "forward, ms",
    "fwd + bwd, ms",
    "speed-up over MAE, forward",
    "speed-up over MAE, fwd + bwd",
    "saved for backward, MiB per image",
]


def decoders(run: Run) -> list[Record]:
    """Those of the model, pixels and batch that most of them have: others differ in more than the decoder."""
    shapes = collections.defaultdict[tuple[object, ...], list[Record]](list)
    for record in run.records.values():
        if record.suite == "decode" and record.stats:
            shapes[tuple(record.about[name] for name in ("model", "pixels", "batch"))].append(record)
    return max(shapes.values(), key=len, default=[])


def shape(found: list[Record]) -> str:
    """What all of them have in common."""
    about = found[0].about
    return f"{about['model']}, {about['pixels']} px, batch {about['batch']}, {found[0].dtype}"


def macs(record: Record) -> float:
    """Per image, forward: a record's work has two operations for each, three times as many with the backward pass."""
    return record.flops / (2 if record.direction == FORWARD else 6) / record.about["batch"]


def mae_of(record: Record, found: Iterable[Record]) -> Record | None:
    """MAE's decoder in the same direction by the same means; what serves MAE for the release is eager PyTorch."""
    means = record.contender.replace("release", "reference")
    same = (r for r in found if (r.contender, r.direction) == (means, record.direction))
    return next((r for r in same if r.about["decoder"] == "MAE"), None)


def speedup(record: Record, mae: Record | None) -> float | None:
    """Over MAE's decoder: timed in turn with this one where it was, else in the same run."""
    if record.baseline is not None:
        return record.baseline / record.stats["median"]
    return record.times_faster(mae)


def table(run: Run) -> str:
    """Markdown: what was measured of each decoder; what was not is an empty cell."""
    found = decoders(run)
    groups = collections.defaultdict[tuple[str, str], dict[str, Record]](dict)
    for record in found:
        groups[record.problem, record.contender][record.direction] = record
    rows = []
    for by_direction in groups.values():
        both = [by_direction.get(direction) for direction in (FORWARD, BOTH)]
        one = next(iter(by_direction.values()))
        mae, saved = mae_of(one, found), both[1] and both[1].saved
        is_mae = one.about["decoder"] == "MAE"
        rows.append(
            [
                one.about["decoder"] + ("" if one.contender == "reference" else f", {one.contender}"),
                one.about["blocks"],
                "all" if is_mae else f"{one.about['predicts']:g}",
                f"{macs(one) / 1e9:.3f}",
                mae and f"{macs(mae) / macs(one):.2f}",
                *(record and f"{record.stats['median'] * 1e3:,.0f}" for record in both),
                *(record and (factor := speedup(record, mae_of(record, found))) and f"{factor:.2f}" for record in both),
                saved and f"{saved / one.about['batch'] / 2**20:.1f}",
            ]
        )
    return f"{shape(found)}; {run.where}\n\n{tabulate(rows, HEADERS, tablefmt='github', disable_numparse=True)}\n"


def draw(run: Run, path: Path) -> None:
    """Ratio of times against ratio of MACs, forward and backward: on the diagonal a MAC costs what MAE's does."""
    found = decoders(run)
    figure, axes = new_figure(1, 1, 7.5, 5.2)
    axis = axes[0, 0]
    points = [
        (macs(mae) / macs(r), factor, r)
        for r in found
        if r.direction == BOTH and (mae := mae_of(r, found)) and (factor := speedup(r, mae))
    ]
    limit = 1.15 * max(max(point[:2]) for point in points)
    axis.plot([0.7, limit], [0.7, limit], color="grey", linestyle="--", label="time follows MACs")
    contenders = list(dict.fromkeys(r.contender for *_, r in points))
    named = "fused" if "fused" in contenders else "reference"
    for index, contender in enumerate(contenders):
        for decoder, marker in (("MAE", "s"), ("CrossMAE", "o")):
            series = [p for p in points if (p[2].contender, p[2].about["decoder"]) == (contender, decoder)]
            style = {"linestyle": "", "marker": marker, "color": f"C{index}", "label": f"{decoder}, {contender}"}
            axis.plot([p[0] for p in series], [p[1] for p in series], **style if series else {})
            for fewer, factor, record in series if contender == named else []:
                about = record.about
                text = "MAE" if decoder == "MAE" else f"blocks {about['blocks']}, predicts {about['predicts']:g}"
                right = decoder == "MAE" or fewer > limit**0.6
                place = {"xytext": (-7 if right else 7, -3), "ha": "right" if right else "left"}
                axis.annotate(text, (fewer, factor), textcoords="offset points", fontsize=8, **place)
    axis.set(xscale="log", yscale="log", xlabel="times fewer MACs than MAE", ylabel="speed-up over MAE")
    axis.set_title(f"Decoding, forward + backward\n{shape(found)}; {run.where}", fontsize=8)
    axis.legend(fontsize=8)
    write_figure(figure, path)
