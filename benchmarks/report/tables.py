"""Tables of a run. What was not measured has its status in the cell, with the reason below.

The time that the roofline allows is known before anything is measured: it stands beside the outcome, as a prediction.
"""

import collections
from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.contest import BOTH, FORWARD, STEP
from benchmarks.records import Record, Run, missing
from benchmarks.report import decode
from benchmarks.report.goals import OURS, goals
from benchmarks.suites import SUITES


def report(run: Run) -> str:
    """Goals, ceilings, decoders and a table for each suite, in Markdown; each names the machine."""
    parts = [_goals(run) if run.machine.get("cuda") else "", _ceilings(run)]
    if decode.decoders(run):
        parts.append(f"### CrossMAE and MAE\n\n{decode.table(run)}\n![Decoding](decode.png)\n")
    parts += [_suite(run, suite) for suite in SUITES if suite != "ceilings"]
    return "\n".join(part for part in parts if part)


def digest(run: Run, folder: str) -> str:
    """What docs/benchmarks.md says of the run in ``folder``: its goals and its picture."""
    picture = f"![Speed-up of decoding against its arithmetic]({folder}/decode.png)"
    return f"{_goals(run).rstrip()}\n\nAll of it: [{folder}/report.md]({folder}/report.md).\n\n{picture}\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _goals(run: Run) -> str:
    rows = [[*row[:3], row[3] and f"{row[3]:.2f}", row[4]] for row in goals(run)]
    return _titled("Goals", run, _table(["forward + backward", "", "goal", "measured", "verdict"], rows))


def _ceilings(run: Run) -> str:
    rows = [
        [f"{name}, GB/s", f"{rate / 1e9:,.4g}"]
        if name == "copy"
        else [f"product, {name}, TFLOP/s", f"{rate / 1e12:,.3g}"]
        for name, rate in run.ceilings.items()
    ]
    return _titled("Ceilings, as measured", run, _table(["", "at most"], rows)) if rows else ""


def _suite(run: Run, suite: str) -> str:
    """A row for each problem and contender."""
    found = [r for r in run.records.values() if r.suite == suite]
    if not found:
        return ""
    both = "step" if suite == "step" else "fwd + bwd"
    headers = ["problem", "contender", "forward, ms", f"{both} at least, ms", f"{both}, ms", "share of roofline"]
    headers += [f"{both} as a call, ms", f"time / {OURS}", "peak memory, MiB", "images per s"]
    rows, by_contender = [], collections.defaultdict[tuple[str, str], dict[str, Record]](dict)
    for record in found:
        by_contender[record.problem, record.contender][record.direction] = record
    problems = [problem for problem, _ in by_contender]
    for problem, contender in sorted(by_contender, key=lambda key: problems.index(key[0])):
        directions = by_contender[problem, contender]
        forward, main = directions.get(FORWARD), directions.get(BOTH) or directions.get(STEP)
        ours = main and run.records.get((suite, problem, OURS, main.direction))
        least, share = main and run.least(main), main and run.roofline(main)
        rows.append(
            [
                problem,
                contender,
                forward and _milliseconds(forward),
                least and f"{least * 1e3:,.3f}",
                main and _milliseconds(main),
                share and f"{share:.0%}",
                main and main.seconds_of_call and f"{main.seconds_of_call * 1e3:,.3f}",
                main and ours and (factor := main.times_faster(ours)) and f"{1 / factor:.3g}",
                main and main.memory and f"{main.memory / 2**20:,.0f}",
                main and main.seconds and f"{main.about['batch'] / main.seconds:,.0f}",
            ]
        )
    wanted = [i for i, head in enumerate(headers) if head != ("forward, ms" if suite == "step" else "images per s")]
    text = _table([headers[i] for i in wanted], [[row[i] for i in wanted] for row in rows])
    return _titled(suite, run, "\n".join([text, "", *missing(found), *_without_graph(found)]).rstrip())


def _titled(title: str, run: Run, text: str) -> str:
    return f"### {title}\n\n{run.where}\n\n{text}\n"


def _without_graph(found: Sequence[Record]) -> list[str]:
    """Lines for what is compared by calls, by reason."""
    lines = []
    for reason in dict.fromkeys(r.no_graph for r in found if r.no_graph):
        contenders = dict.fromkeys(r.contender for r in found if r.no_graph == reason)
        lines.append(f"- \\* a call's time, not a graph's: {', '.join(contenders)}. {reason}")
    return lines


def _milliseconds(record: Record) -> str:
    """Median of the device's own time, marked if a call's stands for it; the status of what was not measured."""
    return f"{record.seconds * 1e3:,.3f}{'*' if record.no_graph else ''}" if record.seconds else record.status
