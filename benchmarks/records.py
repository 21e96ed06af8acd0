"""What was measured, and where: the record of a run.

A run on a GPU takes minutes in many processes, any of which may crash, so its record is a file of lines that is only
added to, ``records.jsonl``. Each line is a part of a run, and later lines replace earlier ones about the same thing: a
session writes down its machine and all that it plans; a measurement is written down as crashed when it begins, and with
its outcome when it ends. On a CPU the record is pytest-benchmark's own JSON; both hold the same facts of each
measurement.
"""

import collections
import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "records.jsonl"
ROOT = Path(__file__).parent.parent

MEASURED, MISSING, OUT_OF_MEMORY = "measured", "missing", "out of memory"
WRONG, FAILED, NOT_REACHED = "wrong", "failed", "not reached"
# Statuses that another session leaves alone; everything else is tried again.
FINAL = (MEASURED, MISSING, OUT_OF_MEMORY)
DONE, TIMED_OUT = "done", "timed out"
# The reason of a measurement that is under way.
STARTED = "started and never done"

Key = tuple[str, str, str, str]


@dataclass
class Record:
    """One contender on one problem in one direction, and what came of it."""

    suite: str
    problem: str
    contender: str
    direction: str
    status: str = NOT_REACHED
    reason: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    """Of the problem: model, batch and what else tells it from others."""
    dtype: str = ""
    bytes: float = 0.0
    """The least that must move."""
    flops: float = 0.0
    """Of the products."""
    stats: dict[str, Any] = field(default_factory=dict)
    """pytest-benchmark's, of the time: the device's own in a CUDA graph where there is one, else a call's."""
    call: dict[str, Any] = field(default_factory=dict)
    """The call's beside the graph's."""
    no_graph: str = ""
    """Why there is none on a GPU."""
    baseline: float | None = None
    """Median seconds of the problem's baseline, timed in turn."""
    memory: int | None = None
    """Most bytes that the pass allocates on a GPU beyond its arguments."""
    saved: int | None = None
    """Bytes that autograd keeps between forward and backward pass."""
    tuned: bool = False
    """Whether kernels ran in tuned configurations, as far as tuning got."""
    check: str = ""
    """The result nearest to its budget, and its share of that."""

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
        return (self.call or self.stats).get("median")

    def times_faster(self, other: "Record | None") -> float | None:
        """The other's time over this one's, by the same clock for both; None where one was not measured."""
        if other is None or not self.stats or not other.stats:
            return None
        if self.call and other.call:
            return other.stats["median"] / self.stats["median"]
        return (other.call or other.stats)["median"] / (self.call or self.stats)["median"]

    @property
    def extra_info(self) -> dict[str, Any]:
        """What stands beside the times in pytest-benchmark's JSON."""
        return {name: value for name, value in vars(self).items() if name != "stats"}

    @property
    def group(self) -> str:
        """Name of the group of contenders that are compared."""
        return f"{self.suite}: {self.problem}, {self.direction}"


@dataclass
class Stage:
    """A part of a run, in processes of its own."""

    status: str
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Everything that was recorded in a folder."""

    machine: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    records: dict[Key, Record] = field(default_factory=dict)

    def put(self, records: Iterable[Record]) -> None:
        """Add records, or replace those of the same key."""
        self.records |= {record.key: record for record in records}

    def open(self, suite: str) -> int:
        """How many of a suite's measurements have not been tried."""
        return sum(r.suite == suite and r.status == NOT_REACHED for r in self.records.values())

    def as_pytest_benchmark(self) -> dict[str, Any]:
        """What was measured, as pytest-benchmark's JSON has it, for ``pytest-benchmark compare``."""
        names = {key: ", ".join(key) for key in self.records}
        return {
            "machine_info": self.machine,
            "commit_info": {"id": self.machine["commit"]},
            "datetime": self.machine["date"],
            "benchmarks": [
                {
                    "group": r.group,
                    "name": names[key],
                    "fullname": names[key],
                    "extra_info": r.extra_info,
                    "stats": r.stats,
                }
                for key, r in self.records.items()
                if r.stats
            ],
        }

    @property
    def ceilings(self) -> dict[str, float]:
        """What the machine reached: ``copy`` in bytes per second, FLOP per second of a product by name of its dtype."""
        found = [r for r in self.records.values() if r.suite == "ceilings" and r.stats]
        return {r.dtype if r.flops else "copy": (r.flops or r.bytes) / r.stats["median"] for r in found}

    def least(self, record: Record) -> float | None:
        """Seconds that the work takes at the least, as the roofline has it; None where a ceiling was not measured."""
        ceilings = self.ceilings
        if "copy" not in ceilings or record.dtype not in ceilings:
            return None
        return max(record.bytes / ceilings["copy"], record.flops / ceilings[record.dtype])

    def roofline(self, record: Record) -> float | None:
        """The least time over the time taken."""
        least = self.least(record)
        return least / record.seconds if least and record.seconds else None

    @property
    def where(self) -> str:
        """A line with the device, the versions, the commit and the date."""
        machine = self.machine
        parts = [machine["device"]]
        parts += ["kernels in Triton's interpreter: a rehearsal"] if machine.get("interpreted") else []
        parts += [f"driver {machine['driver']}"] if machine.get("driver") else []
        parts += [f"{name} {machine[name]}" for name in ("torch", "triton", "cuda") if machine.get(name)]
        return "; ".join([*parts, f"commit {machine['commit'][:10]}", machine["date"][:10]])


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

    def write(
        self,
        machine: Mapping[str, Any] | None = None,
        stages: Mapping[str, Stage] | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        """Append a line, with a line break in front too, so that a line that a crash cut short spoils no other."""
        if self._path is not None:
            part = {
                "machine": machine or {},
                "stages": {name: vars(stage) for name, stage in (stages or {}).items()},
                "records": [vars(record) for record in records],
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(part)}\n")


def read(path: Path) -> Run:
    """The run in a folder, or in JSON files of pytest-benchmark there.

    Raises FileNotFoundError where there is none.
    """
    run = Run()
    if (path / FILE).is_file():
        for line in (path / FILE).read_text("utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut short
                part = json.loads(line or "{}")
                run.machine |= part.get("machine", {})
                run.stages |= {name: Stage(**stage) for name, stage in part.get("stages", {}).items()}
                run.put(Record(**record) for record in part.get("records", ()))
        return run
    for file in sorted(path.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        found = [b for b in content.get("benchmarks", ()) if "suite" in b["extra_info"]]
        run.put(Record(**b["extra_info"], stats=b["stats"]) for b in found)
        if found:
            run.machine = content["machine_info"] | {
                "commit": content["commit_info"]["id"],
                "date": content["datetime"],
            }
    if not run.records:
        raise FileNotFoundError(f"there are no records in {path}; run `make bench` or `make gpu`")
    return run


def commit() -> str:
    """The commit of the working tree, marked if it was changed; a digest of the sources where there is no git."""
    try:
        head = _output("git", "rev-parse", "HEAD")
        return head + ("+changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        digest = hashlib.sha256()
        for package in ("crossmae", "crossmae_kernels", "benchmarks"):
            for file in sorted((ROOT / package).rglob("*.py")):
                digest.update(file.read_bytes())
        return f"tree-{digest.hexdigest()[:12]}"


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
