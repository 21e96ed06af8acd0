"""Tables of a run of ``benchmarks.gpu``. What was not measured is an empty cell, with its reason below.

The time that the roofline allows is known before anything is measured: it stands beside the outcome, as a prediction.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from benchmarks import records
from benchmarks.ceilings import bound
from benchmarks.problem import BOTH, FORWARD, LARGEST, STEP, Work
from benchmarks.records import Record, Run
from benchmarks.report import markdown
from benchmarks.report.goals import goals
from benchmarks.suites import SUITES

OURS = "fused"

Key = TypeVar("Key")


def tables(run: Run) -> str:
    """Goals, ceilings and a table for each suite, in Markdown; each names the machine."""
    parts = [_goals(run), _ceilings(run), suites(run), _first_calls(run)]
    return "\n".join(part for part in parts if part)


def suites(run: Run) -> str:
    """A table for each suite, and the largest batches."""
    parts = [*(_suite(run, suite) for suite in SUITES), _largest(run)]
    return "\n".join(part for part in parts if part)


def digest(run: Run, folder: str) -> str:
    """What a README says of the run in ``folder``: its goals and its most telling picture."""
    picture = f"![Time of decoding against its arithmetic]({folder}/decode_cost.png)"
    return f"{_goals(run).rstrip()}\n\nAll of it: [{folder}/report.md]({folder}/report.md).\n\n{picture}\n"


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
    rows = [["copy, GB/s", f"{run.ceilings['copy'] / 1e9:,.4g}"]]
    rows += [
        [f"product, {name}, TFLOP/s", f"{rate / 1e12:,.3g}"] for name, rate in run.ceilings.items() if name != "copy"
    ]
    return _titled("Ceilings, as measured", run, markdown.table(["", "at most"], rows))


def _suite(run: Run, suite: str) -> str:
    """A row for each problem and contender."""
    found = [r for r in run.records.values() if r.suite == suite and r.direction in (FORWARD, BOTH, STEP)]
    if not found:
        return ""
    both = "step" if suite == "step" else "fwd + bwd"
    headers = ["problem", "contender", "forward, ms", f"{both} at least, ms", f"{both}, ms", "share of roofline"]
    headers += [f"{both} as a call, ms", "it / fused", "peak memory, MiB", "images per s"]
    rows = []
    together = [r for _, of_problem in _grouped(found, lambda r: r.problem) for r in of_problem]
    for (problem, contender), by_direction in _grouped(together, lambda r: (r.problem, r.contender)):
        directions = {r.direction: r for r in by_direction}
        main = directions.get(BOTH) or directions.get(STEP)
        rows.append(
            [
                problem,
                contender,
                _milliseconds(directions.get(FORWARD)),
                _predicted(run, main),
                _milliseconds(main),
                "" if main is None or main.roofline is None else f"{main.roofline:.0%}",
                _milliseconds(main, "call"),
                "" if main is None or (factor := ratio(run, main)) is None else f"{factor:.3g}",
                "" if main is None or main.memory is None else f"{main.memory / 2**20:,.0f}",
                _images_per_second(main),
            ]
        )
    wanted = [i for i, head in enumerate(headers) if head != ("forward, ms" if suite == "step" else "images per s")]
    text = markdown.table([headers[i] for i in wanted], [[row[i] for i in wanted] for row in rows])
    return _titled(suite, run, "\n".join([text, *_missing(found)]))


def _largest(run: Run) -> str:
    """The largest batch of a training step, for each contender."""
    found = [r for r in run.records.values() if r.direction == LARGEST]
    if not found:
        return ""
    rows = [
        [
            r.problem.rpartition(", batch")[0],
            r.contender,
            "" if r.largest is None else f"{r.largest:,}",
            r.reason if r.status == records.MEASURED else "",
        ]
        for r in found
    ]
    text = markdown.table(["step of", "contender", "images that fit", "beyond"], rows)
    return _titled("largest batch", run, "\n".join([text, *_missing(found)]))


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
    lines = []
    for (status, reason), group in _grouped(absent, lambda r: (r.status, r.reason)):
        who = []
        for contender, of_contender in _grouped(group, lambda r: r.contender):
            first, *others = dict.fromkeys(r.problem for r in of_contender)
            who.append(f"{contender} ({first}{f' and {len(others)} more' if others else ''})")
        lines.append(f"- {status}: {'; '.join(who)}. {reason}".rstrip())
    for reason in dict.fromkeys(r.no_graph for r in found if r.no_graph):
        contenders = dict.fromkeys(r.contender for r in found if r.no_graph == reason)
        lines.append(f"- \\* a call's time, not a graph's: {', '.join(contenders)}. {reason}")
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


def _predicted(run: Run, record: Record | None) -> str:
    """What the roofline says that the work takes at the least."""
    least = None if record is None else bound(Work(record.bytes, record.flops), record.dtype, run.ceilings)
    return f"{least * 1e3:,.3f}" if least else ""


def ratio(run: Run, record: Record) -> float | None:
    """Its time over that of the kernels, by the same clock; None where one of them was not measured."""
    ours = run.records.get((record.suite, record.problem, OURS, record.direction))
    if ours is None or not ours.times or not record.times:
        return None
    kind = "graph" if "graph" in record.times and "graph" in ours.times else "call"
    return record.times[kind]["median"] / ours.times[kind]["median"]


def _images_per_second(record: Record | None) -> str:
    if record is None or record.time is None:
        return ""
    return f"{record.about['batch'] / record.time['median']:,.0f}"
