"""Tables of a run. What was not measured has its status in the cell, with the reason below.

The time that the roofline allows is known before anything is measured: it stands beside the outcome, as a prediction.
"""

import collections
from collections.abc import Iterator, Sequence

from benchmarks import decoders
from benchmarks.contest import BOTH, FORWARD
from benchmarks.ops import SUITES
from benchmarks.predictions import decoder
from benchmarks.records import Record, Run, missing
from crossmae.benchmark.decode import Row
from crossmae.benchmark.machine import where
from crossmae.benchmark.report import markdown, text

OURS = "fused"
ROOFLINE, SPEED, MEMORY = "share of the roofline", "speed-up over the strongest", "peak memory over the least"
MAES = "speed-up over MAE's strongest"

# What is to be reached forward and backward, against the strongest that others offer: eager PyTorch, a compiler, a
# library or the release's formulation. Suite; how the problem's name begins; what is compared; the limit.
DECODER = "decoder, crossmae_vit_base_patch16, 224 px, batch 1024"
GOALS = (
    ("attention", "ViT-B/16, cross_attention, 49 x 50", SPEED, 2),
    ("attention", "ViT-B/16, cross_attention, 49 x 50", ROOFLINE, 0.70),
    ("mixing", "ViT-B/16", SPEED, 2),
    ("mixing", "ViT-B/16", ROOFLINE, 0.75),
    ("patches", "ViT-B/16", ROOFLINE, 0.70),
    ("decode", DECODER, SPEED, 1.5),
    # Ours keeps 4.3 MiB per image, a compiler an estimated 9; 2 for the gradients of feature maps everybody needs.
    ("decode", DECODER, MEMORY, 0.6),
    ("decode", DECODER, ROOFLINE, 0.60),
    ("decode", DECODER, MAES, 3.7),
)


def report(run: Run) -> str:
    """Goals, ceilings and tables of all suites, in Markdown; each names the machine."""
    parts = [goals_table(run) if run.machine.get("cuda") else "", _ceilings(run), kernels_table(run)]
    parts += [_comparisons(run, suite) for suite in decoders.SUITES] + [_suite(run, suite) for suite in SUITES]
    return "\n".join(part for part in parts if part)


def goals_table(run: Run) -> str:
    """Whether each goal is reached."""
    rows = [[*row[:3], row[3] and f"{row[3]:.2f}", row[4]] for row in goals(run)]
    return _titled("Goals", run, markdown(["forward + backward", "", "goal", "measured", "verdict"], rows))


def kernels_table(run: Run) -> str:
    """Each kernel of ViT-B's decoder: what was predicted of it, and what was measured; empty where neither is known."""
    content = decoder.beside(run)
    return _titled("Kernels, predicted and measured", run, content.rstrip()) if content else ""


def goals(run: Run) -> Iterator[tuple[str, str, str, float | None, str]]:
    """Problem, what is compared with whom, limit, what was measured and the verdict, of each goal on its problems."""
    for suite, begin, what, limit in GOALS:
        problems = dict.fromkeys(p for s, p, *_ in run.records if s == suite and p.startswith(begin))
        for problem in problems or (begin,):
            measured = _of_decoders if suite == "decode" else _of_op
            value, who = measured(run, suite, problem, what)
            verdict, at_most = "not measured", what == MEMORY
            if value is not None:
                verdict = "reached" if (value <= limit if at_most else value >= limit) else "missed"
            title = f"{what}, {who}" if who else what
            yield f"{suite}: {problem}", title, f"{'at most' if at_most else 'at least'} {limit:g}", value, verdict


def _of_op(run: Run, suite: str, problem: str, what: str) -> tuple[float | None, str]:
    """What was measured and, where there is one, the contender that leaves us the least advantage."""
    ours = run.records.get((suite, problem, OURS, BOTH))
    if ours is None or what == ROOFLINE:
        return (run.roofline(ours) if ours else None), ""
    others = [
        (ratio, other.contender)
        for other in run.records.values()
        if (other.suite, other.problem, other.direction) == (suite, problem, BOTH)
        and not other.contender.startswith(OURS)
        and (ratio := ours.times_faster(other))
    ]
    return min(others, default=(None, ""))


def _of_decoders(run: Run, suite: str, problem: str, what: str) -> tuple[float | None, str]:
    """The same of CrossMAE's decoder at the depth and prediction ratio that all means are compared at."""
    rows = [Row(**row) for r in run.records.values() if (r.suite, r.problem) == (suite, problem) and r.found
            for row in r.found["rows"] if "by" not in r.contender]  # fmt: skip
    ours = [row for row in rows if row.decoder == "CrossMAE" and row.means.startswith("kernels") and row.both]
    others = [row for row in rows if not row.means.startswith("kernels") and row.both]
    best = min(ours, key=_seconds, default=None)
    if best is None or what == ROOFLINE:
        return (best.least / _seconds(best) if best and best.least else None), ""
    others = [row for row in others if row.decoder == ("MAE" if what == MAES else "CrossMAE")]
    if what == MEMORY:
        kept = [(row.memory, row.means) for row in others if row.memory]
        least = min((row.memory for row in ours if row.memory), default=None)
        return (least / min(kept)[0], min(kept)[1]) if kept and least else (None, "")
    strongest = min(others, key=_seconds, default=None)
    return (_seconds(strongest) / _seconds(best), strongest.means) if strongest else (None, "")


def _seconds(row: Row) -> float:
    return row.both or float("inf")


def _ceilings(run: Run) -> str:
    found = run.ceilings
    if found is None:
        return ""
    rows = [["copy, GB/s", f"{found.copy / 1e9:,.4g}"], ["product, TFLOP/s", f"{found.product / 1e12:,.3g}"]]
    return _titled("Ceilings, as measured", run, markdown(["", "at most"], rows))


def _comparisons(run: Run, suite: str) -> str:
    """The tables of ``crossmae bench``."""
    parts = [text(comparison) for comparison in run.comparisons(suite)]
    parts += [
        "\n".join(lines) + "\n" for lines in [missing(r for r in run.records.values() if r.suite == suite)] if lines
    ]
    return f"### {suite}\n\n" + "\n".join(parts) if parts else ""


def _suite(run: Run, suite: str) -> str:
    """A row for each problem and contender."""
    found = [record for record in run.records.values() if record.suite == suite]
    if not found:
        return ""
    headers = ["problem", "contender", "forward, ms", "fwd + bwd at least, ms", "fwd + bwd, ms", "share of roofline"]
    headers += ["fwd + bwd as a call, ms", f"time / {OURS}", "peak memory, MiB"]
    rows, by_contender = [], collections.defaultdict[tuple[str, str], dict[str, Record]](dict)
    for record in found:
        by_contender[record.problem, record.contender][record.direction] = record
    problems = [problem for problem, _ in by_contender]
    for problem, contender in sorted(by_contender, key=lambda key: problems.index(key[0])):
        directions = by_contender[problem, contender]
        forward, both = directions.get(FORWARD), directions.get(BOTH)
        ours = run.records.get((suite, problem, OURS, BOTH))
        least, share = both and run.least(both), both and run.roofline(both)
        rows.append(
            [
                problem,
                contender,
                forward and _milliseconds(forward),
                least and f"{least * 1e3:,.3f}",
                both and _milliseconds(both),
                share and f"{share:.0%}",
                both and both.seconds_of_call and f"{both.seconds_of_call * 1e3:,.3f}",
                both and ours and (factor := both.times_faster(ours)) and f"{1 / factor:.3g}",
                both and both.memory and f"{both.memory / 2**20:,.0f}",
            ]
        )
    return _titled(
        suite, run, "\n".join([markdown(headers, rows), "", *missing(found), *_without_graph(found)]).rstrip()
    )


def _titled(title: str, run: Run, content: str) -> str:
    return f"### {title}\n\n{where(run.machine)}\n\n{content}\n"


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
