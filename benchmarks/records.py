"""What was measured, and where: the record of a run.

A run on a GPU takes minutes in many processes, any of which may crash, so its record is a file of lines that is only
added to, ``records.jsonl``. Each line is a part of a run, and later lines replace earlier ones about the same thing: a
session writes down its machine and all that it plans; a measurement is written down as crashed when it begins, and with
its outcome when it ends.
"""

import collections
import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contest import Form
from crossmae.benchmark.ceilings import Ceilings
from crossmae.benchmark.comparison import Comparison, of_dict
from crossmae.benchmark.machine import machine
from crossmae.files import make_folder

FILE = "records.jsonl"
ROOT = Path(__file__).parent.parent

MEASURED, MISSING, OUT_OF_MEMORY = "measured", "missing", "out of memory"
WRONG, FAILED, NOT_REACHED = "wrong", "failed", "not reached"
# Statuses that another session leaves alone; everything else is tried again.
FINAL = (MEASURED, MISSING, OUT_OF_MEMORY)
# The reason of a measurement that is under way.
STARTED = "started and never done"

Key = tuple[str, str, str, str]


@dataclass
class Record:
    """One contender on one problem in one direction, or one comparison of decoders, and what came of it."""

    suite: str
    problem: str
    contender: str
    direction: str
    status: str = NOT_REACHED
    reason: str = ""
    dtype: str = ""
    bytes: float = 0.0
    """The least that must move."""
    flops: float = 0.0
    """Of the products."""
    stats: dict[str, Any] = field(default_factory=dict)
    """pytest-benchmark's, of the time: the device's own in a CUDA graph where there is one, else a call's."""
    call: float | None = None
    """Median seconds of a call from Python, waited for, beside the graph's."""
    no_graph: str = ""
    """Why there is none on a GPU."""
    memory: int | None = None
    """Most bytes that the pass allocates on a GPU beyond its arguments."""
    tuned: bool = False
    """Whether kernels ran in tuned configurations, as far as tuning got."""
    check: str = ""
    """The result nearest to its budget, and its share of that."""
    found: dict[str, Any] = field(default_factory=dict)
    """Of a comparison of decoders, the comparison; of the ceilings, these."""

    @property
    def key(self) -> Key:
        """What tells a record from others."""
        return self.suite, self.problem, self.contender, self.direction

    @property
    def seconds(self) -> float | None:
        """Median."""
        return self.stats.get("median")

    @property
    def seconds_of_call(self) -> float | None:
        """Median of a call from Python, waited for."""
        return self.call or self.seconds

    def times_faster(self, other: "Record") -> float | None:
        """The other's time over this one's, by the same clock for both; None where one was not measured."""
        if not self.stats or not other.stats:
            return None
        if self.call and other.call:
            return other.stats["median"] / self.stats["median"]
        return (other.call or other.stats["median"]) / (self.call or self.stats["median"])


@dataclass
class Run:
    """Everything that was recorded in a folder."""

    machine: dict[str, Any] = field(default_factory=dict)
    records: dict[Key, Record] = field(default_factory=dict)

    def put(self, records: Iterable[Record]) -> None:
        """Add records, or replace those of the same key."""
        self.records |= {record.key: record for record in records}

    def open(self, suite: str) -> int:
        """How many of a suite's measurements have not been tried."""
        return sum(r.suite == suite and r.status == NOT_REACHED for r in self.records.values())

    @property
    def ceilings(self) -> Ceilings | None:
        """What the machine reached; None where that was not measured."""
        return next((Ceilings(**r.found) for r in self.records.values() if r.suite == "ceilings" and r.found), None)

    def least(self, record: Record) -> float | None:
        """Seconds that the work takes at the least, as the roofline has it."""
        return self.ceilings.least(record.bytes, record.flops) if self.ceilings else None

    def roofline(self, record: Record) -> float | None:
        """The least time over the time taken."""
        least = self.least(record)
        return least / record.seconds if least and record.seconds else None

    def comparisons(self, suite: str) -> list[Comparison]:
        """Of decoders, in a suite."""
        return [of_dict(r.found) for r in self.records.values() if r.suite == suite and r.found]


def missing(found: Iterable[Record]) -> list[str]:
    """Lines for what was not measured, by reason."""
    by_reason = collections.defaultdict[tuple[str, str], dict[str, list[str]]](dict)
    for record in found:
        if record.status != MEASURED:
            problems = by_reason[record.status, record.reason].setdefault(record.contender, [])
            problems += [record.problem] if record.problem not in problems else []
    lines = []
    for (status, reason), contenders in by_reason.items():
        more = {name: f" and {len(problems) - 1} more" if problems[1:] else "" for name, problems in contenders.items()}
        who = "; ".join(f"{name} ({problems[0]}{more[name]})" for name, problems in contenders.items())
        lines.append(f"- {status}: {who}. {reason}".rstrip())
    return lines


class Journal:
    """Adds to the record of a folder; without a folder to none."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE

    def write(self, machine: Mapping[str, Any] | None = None, records: Iterable[Record] = ()) -> None:
        """Append a line, with a line break in front too, so that a line that a crash cut short spoils no other."""
        if self._path is not None:
            part = {"machine": machine or {}, "records": [vars(record) for record in records]}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(part)}\n")


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises FileNotFoundError where there is none.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"there are no records in {folder}; run `make bench` or `make gpu`")
    run = Run()
    for line in (folder / FILE).read_text("utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut short
            part = json.loads(line or "{}")
            run.machine |= part.get("machine", {})
            run.put(Record(**record) for record in part.get("records", ()))
    return run


def begin(folder: Path, form: Form, **more: Any) -> Run:
    """The run in a folder, begun there if there is none; one of another commit, device or form raises ValueError."""
    make_folder(folder)
    now = {
        **machine(form.device),
        "form": form.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }
    before = read(folder) if (folder / FILE).is_file() else Run(now)
    for what in ("commit", "device", "form"):
        if before.machine[what] != now[what]:
            raise ValueError(f"{folder} has records of {what} {before.machine[what]}, this is {now[what]}")
    Journal(folder).write(now)
    return before
