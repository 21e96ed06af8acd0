"""CrossMAE's decoder beside MAE's: cost in arithmetic, in time and in memory, as a table and a picture."""

import collections
from collections.abc import Iterable
from pathlib import Path

from benchmarks.contest import BOTH, FORWARD
from benchmarks.records import Record, Run
from crossmae.benchmark import report
from crossmae.benchmark.decode import Row


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


def rows(run: Run) -> list[Row]:
    """What was measured of each decoder."""
    found = decoders(run)
    groups = collections.defaultdict[tuple[str, str], dict[str, Record]](dict)
    for record in found:
        groups[record.problem, record.contender][record.direction] = record
    made = []
    for by_direction in groups.values():
        forward, both = by_direction.get(FORWARD), by_direction.get(BOTH)
        one = next(iter(by_direction.values()))
        about, mae = one.about, mae_of(one, found)
        made.append(
            Row(
                about["decoder"],
                "" if one.contender == "reference" else one.contender,
                about["blocks"],
                about["predicts"],
                macs(one),
                macs(mae) / macs(one) if mae else None,
                forward=forward.seconds if forward else None,
                both=both.seconds if both else None,
                forward_speedup=speedup(forward, mae_of(forward, found)) if forward else None,
                both_speedup=speedup(both, mae_of(both, found)) if both else None,
                saved=both.saved / about["batch"] if both and both.saved else None,
            )
        )
    return made


def table(run: Run) -> str:
    """Markdown: what was measured of each decoder; what was not is an empty cell."""
    return f"{shape(decoders(run))}; {run.where}\n\n{report.table(rows(run))}\n"


def draw(run: Run, path: Path) -> None:
    """Ratio of times against ratio of MACs, see ``crossmae.benchmark.report``."""
    found = rows(run)
    labelled = "fused" if any(row.means == "fused" for row in found) else ""
    report.draw(found, f"{shape(decoders(run))}; {run.where}", path, labelled)
