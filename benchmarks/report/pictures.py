"""Pictures of a run of ``benchmarks.gpu``: one for each suite, and decoding's cost against its arithmetic."""

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.problem import BOTH, STEP
from benchmarks.records import Record, Run
from benchmarks.report.runs import OURS, ratio
from benchmarks.suites import SUITES
from crossmae.figures import new_figure, write_figure

MARKERS = "osD^v<>pPX*hd"


def draw(run: Run, folder: Path) -> list[Path]:
    """The pictures that the run has numbers for; their files."""
    measured = [r for r in run.records.values() if r.times and r.direction in (BOTH, STEP)]
    drawn = []
    for suite in SUITES:
        found = [r for r in measured if r.suite == suite]
        if found:
            drawn.append(folder / f"{suite}.png")
            _suite(run, found, drawn[-1])
    points = _of_one_shape([r for r in measured if r.suite == "decode"])
    if points:
        drawn.append(folder / "decode_cost.png")
        _decode_cost(run, points, drawn[-1])
    return drawn


def _suite(run: Run, found: Sequence[Record], path: Path) -> None:
    """A line for each problem and a mark for each contender: time, share of the roofline, memory."""
    lines = list(dict.fromkeys(r.problem for r in found))
    names = list(dict.fromkeys(r.contender for r in found))
    panels: list[tuple[str, Callable[[Record], float | None]]] = [
        (f"time / time of {OURS}", lambda r: ratio(run, r)),
        ("share of the roofline, %", lambda r: None if r.roofline is None else 100 * r.roofline),
        ("peak memory beyond the arguments, MiB", lambda r: None if r.memory is None else r.memory / 2**20),
    ]
    height = 1.5 + max(0.35 * len(lines), 0.17 * len(names))
    figure, ((*axes,),) = new_figure(1, len(panels), 15, height)
    for axis, (title, value) in zip(axes, panels, strict=True):
        values = [(r, v) for r in found if (v := value(r)) is not None]
        for index, name in enumerate(names):
            marks = [(v, lines.index(r.problem)) for r, v in values if r.contender == name]
            style = {"linestyle": "", "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
            axis.plot(*zip(*marks, strict=True) if marks else ((), ()), label=name, **style)
        axis.set_title(title if values else f"{title}: not measured", fontsize=8)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_yticks(range(len(lines)), lines if axis is axes[0] else [""] * len(lines), fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(alpha=0.3)
        if not values:
            axis.set_xticks([])
        elif axis is not axes[1]:
            axis.set_xscale("log")
            _plain_numbers(axis.xaxis)
    axes[0].axvline(1, color="grey", linestyle="--")
    axes[1].set_xlim(left=0)
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    direction = "a training step" if found[0].direction == STEP else "forward + backward"
    figure.suptitle(f"{found[0].suite}, {direction}\n{run.where}", fontsize=8)
    write_figure(figure, path)


def _of_one_shape(points: Sequence[Record]) -> list[Record]:
    """Those of the model, pixels and batch that most of them have: others differ in more than the decoder."""
    shapes = collections.defaultdict[tuple[object, ...], list[Record]](list)
    for record in points:
        shapes[tuple(record.about[name] for name in ("model", "pixels", "batch"))].append(record)
    return max(shapes.values(), key=len, default=[])


def _decode_cost(run: Run, points: Sequence[Record], path: Path) -> None:
    """Time of an image against its multiply-accumulates, of both decoders."""
    figure, ((axis,),) = new_figure(1, 1, 8, 5.5)
    about = points[0].about
    series = collections.defaultdict[tuple[str, str], list[tuple[float, float]]](list)
    for record in points:
        assert record.time is not None
        place = _gmacs(record), record.time["median"] / record.about["batch"] * 1e6
        series[record.about["decoder"], record.contender].append(place)
        if (record.about["decoder"], record.contender) == ("CrossMAE", OURS):
            text = f"{record.about['blocks']}, {record.about['predicts']:g}"
            axis.annotate(text, place, xytext=(0, -11), textcoords="offset points", fontsize=6, ha="center")
    names = list(dict.fromkeys(contender for _, contender in series))
    for (decoder, contender), places in series.items():
        index = names.index(contender)
        style = {"marker": MARKERS[index], "color": f"C{index}", "fillstyle": "none" if decoder == "MAE" else "full"}
        axis.plot(*zip(*places, strict=True), linestyle="", label=f"{decoder}, {contender}", **style)
    rate = run.ceilings.get(points[0].dtype)
    if rate:
        ends = [limit(_gmacs(r) for r in points) for limit in (min, max)]
        axis.plot(
            ends, [6e15 * gmacs / rate for gmacs in ends], "--", color="grey", label="products alone, as predicted"
        )
    axis.set(xscale="log", yscale="log", xlabel="GMAC per image, forward", ylabel="forward + backward, µs per image")
    for one in (axis.xaxis, axis.yaxis):
        _plain_numbers(one)
    shape = f"{about['model']}, {about['pixels']} px, batch {about['batch']}"
    axis.set_title(f"Decoding, {shape}; numbers: blocks and share that is predicted\n{run.where}", fontsize=7)
    axis.legend(fontsize=7)
    write_figure(figure, path)


def _plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis as 1, 2, 5, 10 instead of powers."""
    axis.get_major_locator().set_params(subs=(1, 2, 5))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")


def _gmacs(record: Record) -> float:
    """Of a forward pass and an image: the record's work is three times its products, at two operations each."""
    return record.flops / 6 / record.about["batch"] / 1e9
