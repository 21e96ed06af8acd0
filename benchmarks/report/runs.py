"""Tables and pictures of a run of ``benchmarks.gpu``. What was not measured is an empty cell, with its reason below."""

import collections
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks import records
from benchmarks.problem import BOTH, FORWARD, STEP
from benchmarks.records import Record, Run
from benchmarks.report import markdown
from benchmarks.report.goals import goals
from benchmarks.suites import SUITES
from crossmae.figures import new_figure, write_figure

OURS = "fused"

Key = TypeVar("Key")


def tables(run: Run) -> str:
    """Goals, ceilings and a table for each suite, in Markdown; each names the machine."""
    parts = [_goals(run), _ceilings(run), *(_suite(run, suite) for suite in SUITES), _first_calls(run)]
    return "\n".join(part for part in parts if part)


def _goals(run: Run) -> str:
    rows = [
        [
            goal.what,
            f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}",
            "" if goal.value is None else f"{goal.value:.2f}",
            goal.verdict,
        ]
        for goal in goals(run)
    ]
    return _titled("Goals", run, markdown.table(["forward + backward", "goal", "measured", "verdict"], rows))


def _ceilings(run: Run) -> str:
    if not run.ceilings:
        return ""
    rows = [["copy, GB/s", f"{run.ceilings['copy'] / 1e9:,.0f}"]]
    rows += [
        [f"product, {name}, TFLOP/s", f"{rate / 1e12:,.1f}"] for name, rate in run.ceilings.items() if name != "copy"
    ]
    return _titled("Ceilings, as measured", run, markdown.table(["", "at most"], rows))


def _suite(run: Run, suite: str) -> str:
    """A row for each problem and contender."""
    found = [r for r in run.records.values() if r.suite == suite and r.direction in (FORWARD, BOTH, STEP)]
    if not found:
        return ""
    rows = []
    for (problem, contender), by_direction in _grouped(found, lambda r: (r.problem, r.contender)):
        directions = {r.direction: r for r in by_direction if r.status == records.MEASURED}
        main = directions.get(BOTH) or directions.get(STEP)
        ours = run.records.get((suite, problem, OURS, main.direction)) if main else None
        rows.append(
            [
                problem,
                contender,
                _milliseconds(directions.get(FORWARD)),
                _milliseconds(main),
                _milliseconds(main, "call"),
                _ratio(main, ours),
                "" if main is None or main.roofline is None else f"{main.roofline:.0%}",
                "" if main is None or main.memory is None else f"{main.memory / 2**20:,.0f}",
                _images_per_second(main) if suite == "step" else None,
            ]
        )
    both = "step" if suite == "step" else "fwd + bwd"
    headers = ["problem", "contender", "forward, ms", f"{both}, ms", f"{both} as a call, ms"]
    headers += ["it / fused", "share of roofline", "peak memory, MiB", "images per s"]
    rows = [[cell for cell in row if cell is not None] for row in rows]
    text = markdown.table(headers[: len(rows[0])], rows)
    return _titled(suite, run, "\n".join([text, *_missing(found)]))


def _first_calls(run: Run) -> str:
    found = [r for r in run.records.values() if r.direction.startswith("first call")]
    if not found:
        return ""
    rows = [[r.problem, r.contender, r.direction, "" if r.time is None else f"{r.time['median']:.1f}"] for r in found]
    text = markdown.table(["problem", "contender", "", "s"], rows)
    return _titled("first call", run, "\n".join([text, *_missing(found)]))


def _titled(title: str, run: Run, text: str) -> str:
    return f"### {title}\n\n{run.where}\n\n{text}\n"


def _missing(found: Iterable[Record]) -> list[str]:
    """Lines for what is not measured, by reason."""
    absent = [r for r in found if r.status != records.MEASURED]
    lines = [
        f"- {status}: {'; '.join(dict.fromkeys(f'{r.contender} ({r.problem})' for r in group))}. {reason}".rstrip()
        for (status, reason), group in _grouped(absent, lambda r: (r.status, r.reason))
    ]
    for reason in dict.fromkeys(r.no_graph for r in found if r.no_graph):
        contenders = dict.fromkeys(r.contender for r in found if r.no_graph == reason)
        lines.append(f"- \\* as a call, no graph holds it: {', '.join(contenders)}. {reason}")
    return ["", *lines] if lines else []


def _grouped(found: Iterable[Record], key: Callable[[Record], Key]) -> Sequence[tuple[Key, list[Record]]]:
    groups: dict[Key, list[Record]] = {}
    for record in found:
        groups.setdefault(key(record), []).append(record)
    return list(groups.items())


def _milliseconds(record: Record | None, kind: str = "") -> str:
    """Median; of the device's own time unless a kind is asked for. A call that stands for it is marked."""
    if record is None or record.time is None:
        return ""
    seconds = (record.times[kind] if kind else record.time)["median"]
    return f"{seconds * 1e3:,.3f}" + ("" if kind or "graph" in record.times or not record.no_graph else "*")


def _ratio(record: Record | None, ours: Record | None) -> str:
    if record is None or ours is None or ours.status != records.MEASURED:
        return ""
    kind = "graph" if "graph" in record.times and "graph" in ours.times else "call"
    return f"{record.times[kind]['median'] / ours.times[kind]['median']:.2f}"


def _images_per_second(record: Record | None) -> str:
    if record is None or record.time is None:
        return ""
    return f"{record.about['batch'] / record.time['median']:,.0f}"


def draw(run: Run, folder: Path) -> list[Path]:
    """The pictures that the run has numbers for; their files."""
    measured = [r for r in run.records.values() if r.status == records.MEASURED and r.direction in (BOTH, STEP)]
    drawn = []
    ratios = {
        f"{r.suite}: {r.problem}: {r.contender}": float(text)
        for r in measured
        if r.contender != OURS and (text := _ratio(r, run.records.get((r.suite, r.problem, OURS, r.direction))))
    }
    shares = {f"{r.suite}: {r.problem}": r.roofline for r in measured if r.contender == OURS and r.roofline is not None}
    memory = {f"{r.suite}: {r.problem}: {r.contender}": r.memory / 2**20 for r in measured if r.memory is not None}
    for name, title, values in (
        ("speedup", "Time of a contender / time of the kernels", ratios),
        ("roofline", "Least time / time of the kernels", shares),
        ("memory", "Peak memory beyond the arguments, MiB", memory),
    ):
        if values:
            drawn.append(folder / f"{name}.png")
            _bars(values, f"{title}, forward + backward\n{run.where}", drawn[-1])
    points = [r for r in measured if r.suite == "decode"]
    if points:
        drawn.append(folder / "decode_cost.png")
        _decode_cost(points, run.where, drawn[-1])
    return drawn


def _bars(values: dict[str, float], title: str, path: Path) -> None:
    figure, axes = new_figure(1, 1, 10, 1.5 + 0.2 * len(values))
    axis = axes[0, 0]
    bars = axis.barh(range(len(values)), list(values.values()))
    axis.bar_label(bars, [f"{value:,.2f}" for value in values.values()], fontsize=6)
    axis.set_yticks(range(len(values)), list(values), fontsize=6)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=7)
    write_figure(figure, path)


def _decode_cost(points: list[Record], where: str, path: Path) -> None:
    """Time of an image against its multiply-accumulates, of both decoders."""
    figure, axes = new_figure(1, 1, 7.5, 5.2)
    axis = axes[0, 0]
    series = collections.defaultdict[str, list[tuple[float, float]]](list)
    for record in points:
        assert record.time is not None
        # The record's work is a forward and a backward pass: three times the products of a forward pass.
        macs = record.flops / 6 / record.about["batch"]
        series[f"{record.about['decoder']}, {record.contender}"].append(
            (macs / 1e9, record.time["median"] / record.about["batch"] * 1e6)
        )
    for name, values in series.items():
        axis.plot(*zip(*sorted(values), strict=True), marker="s" if name.startswith("MAE") else "o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="GMAC per image, forward", ylabel="forward + backward, µs per image")
    axis.set_title(f"Decoding\n{where}", fontsize=8)
    axis.legend(fontsize=7)
    write_figure(figure, path)
