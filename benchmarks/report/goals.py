"""What the operations and the decoder are to reach, forward and backward, and whether a run shows it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import records
from benchmarks.problem import BOTH
from benchmarks.records import Record, Run

MODEL = "ViT-B/16"


@dataclass(frozen=True)
class Goal:
    """A number that is to be at least, or at most, another."""

    what: str
    limit: float
    value: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """``reached``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "reached" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"


def goals(run: Run) -> Iterator[Goal]:
    """Each goal, with what was measured."""
    for batch in (256, 1024):
        for queries in ("table", "dense"):
            attention = _finder(run, "attention", batch, queries=queries, problem="49 x 50,")
            backends = [attention(f"sdpa {name}") for name in ("math", "efficient", "flash", "cudnn")]
            fastest = min((r for r in backends if r is not None), key=_seconds, default=None)
            name = f"attention, {queries} queries, batch {batch}"
            yield Goal(f"{name}: times the fastest SDPA backend", 2, _faster(attention("fused"), fastest))
            yield Goal(f"{name}: share of copy bandwidth", 0.70, _bandwidth(run, attention("fused")))
        mixing = _finder(run, "mixing", batch)
        fused, name = mixing("fused"), f"mixing, batch {batch}"
        yield Goal(f"{name}: times stack and linear, the release", 5, _faster(fused, mixing("release")))
        yield Goal(f"{name}: times the same compiled", 2, _faster(fused, mixing("release, compiled")))
        yield Goal(f"{name}: share of copy bandwidth", 0.75, _bandwidth(run, fused))
        for problem in ("gather", "loss"):
            patches = _finder(run, "patches", batch, problem=problem)
            name = f"{problem}, batch {batch}"
            yield Goal(f"{name}: share of copy bandwidth", 0.70, _bandwidth(run, patches("fused")))
    decode = _finder(run, "decode", 1024, decoder="CrossMAE", blocks=12, predicts=0.25, pixels=224)
    mae = _finder(run, "decode", 1024, decoder="MAE", blocks=8, pixels=224)
    fused, release = decode("fused"), decode("release")
    name = "decoder, batch 1024"
    yield Goal(f"{name}: times the release", 2.5, _faster(fused, release))
    yield Goal(
        f"{name}: times the same compiled, max-autotune", 1.5, _faster(fused, decode("release, compiled, max-autotune"))
    )
    memory = fused.memory / release.memory if fused and release and fused.memory and release.memory else None
    yield Goal(f"{name}: peak memory over the release's", 0.4, memory, at_most=True)
    yield Goal(f"{name}: share of the roofline", 0.60, fused.roofline if fused else None)
    yield Goal(f"{name}: times MAE's decoder compiled", 3.7, _faster(fused, mae("reference, compiled")))


def _finder(run: Run, suite: str, batch: int, **about: object) -> Callable[[str], Record | None]:
    """Looks up what was measured by a contender; text in ``about`` is how a value begins."""

    def fits(record: Record) -> bool:
        values = record.about
        return all(
            values[name].startswith(wanted) if isinstance(wanted, str) else values[name] == wanted
            for name, wanted in about.items()
        )

    found = {
        record.contender: record
        for record in run.records.values()
        if (record.suite, record.direction, record.status) == (suite, BOTH, records.MEASURED)
        and (record.about["batch"], record.about["model"]) == (batch, MODEL)
        and fits(record)
    }
    return found.get


def _seconds(record: Record) -> float:
    assert record.time is not None
    return record.time["median"]


def _faster(ours: Record | None, theirs: Record | None) -> float | None:
    """By the same clock for both: one that no graph holds is compared by calls."""
    if ours is None or theirs is None:
        return None
    kind = "graph" if "graph" in ours.times and "graph" in theirs.times else "call"
    return theirs.times[kind]["median"] / ours.times[kind]["median"]


def _bandwidth(run: Run, record: Record | None) -> float | None:
    """Bytes that had to move, over the time and what a copy moves in it."""
    if record is None or "copy" not in run.ceilings:
        return None
    return record.bytes / _seconds(record) / run.ceilings["copy"]
