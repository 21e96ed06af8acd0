"""The record of a run: one JSON file, written whole or not at all, and the machine that it speaks of."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from crossmae.files import replacing
from crossmae_kernels.info import version

FILE = "records.json"
ROOT = Path(__file__).parent.parent

MEASURED, MISSING, OUT_OF_MEMORY = "measured", "missing", "out of memory"
WRONG, FAILED, NOT_REACHED = "wrong", "failed", "not reached"
# What a second call leaves alone; everything else is tried again.
FINAL = (MEASURED, MISSING, OUT_OF_MEMORY)


@dataclass
class Record:
    """One contender on one problem in one direction, and what came of it."""

    suite: str
    problem: str
    contender: str
    direction: str
    status: str = NOT_REACHED
    reason: str = ""
    date: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    """Of the problem: model, batch and what else tells it from others."""
    dtype: str = ""
    times: dict[str, Any] = field(default_factory=dict)
    """``call`` and ``graph``: median, p20 and p80 in seconds, rounds."""
    no_graph: str = ""
    tuned: bool = False
    """Whether kernels ran in tuned configurations, as far as tuning got."""
    memory: int | None = None
    """Most bytes that the pass allocates beyond its arguments."""
    bytes: float = 0.0
    flops: float = 0.0
    roofline: float | None = None
    """Least time on this machine over the time taken."""
    largest: int | None = None
    """The most images whose step fits, where they were searched."""
    check: dict[str, Any] = field(default_factory=dict)
    """The result nearest to its budget, and its share of that."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells a record from others."""
        return self.suite, self.problem, self.contender, self.direction

    @property
    def time(self) -> dict[str, Any] | None:
        """The device's own time where there is one, else the call's."""
        return self.times.get("graph") or self.times.get("call")


@dataclass
class Stage:
    """One step of a run, in a process of its own."""

    status: str
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Everything that was recorded in a folder."""

    machine: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    records: dict[tuple[str, str, str, str], Record] = field(default_factory=dict)

    def put(self, records: Iterable[Record]) -> None:
        """Add records, or replace those of the same key."""
        self.records |= {record.key: record for record in records}

    @property
    def where(self) -> str:
        """A line that says on what, with what and when."""
        machine = self.machine
        parts = [machine["device"]]
        parts += ["kernels in Triton's interpreter: a rehearsal"] if machine.get("interpreted") else []
        parts += [f"driver {machine['driver']}"] if machine.get("driver") else []
        parts += [f"{name} {machine[name]}" for name in ("torch", "triton", "cuda") if machine.get(name)]
        return "; ".join([*parts, f"commit {machine['commit'][:17]}", machine["date"][:10]])


def write(run: Run, folder: Path) -> None:
    """Write the record of a run into a folder."""
    content = {
        "machine": run.machine,
        "ceilings": run.ceilings,
        "stages": {name: asdict(stage) for name, stage in run.stages.items()},
        "records": [asdict(record) for record in run.records.values()],
    }
    with replacing(folder / FILE) as beside:
        beside.write_text(json.dumps(content, indent=1), "utf-8")


def read(folder: Path) -> Run:
    """Read it back."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there are no records {path}; run `make gpu`")
    content = json.loads(path.read_text("utf-8"))
    run = Run(content["machine"], content["ceilings"])
    run.stages = {name: Stage(**stage) for name, stage in content["stages"].items()}
    run.put(Record(**record) for record in content["records"])
    return run


@contextmanager
def updating(folder: Path) -> Iterator[Run]:
    """The record of a folder, written back when the block ends."""
    run = read(folder)
    yield run
    write(run, folder)


def now() -> str:
    """Date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: torch.device, form: str) -> dict[str, Any]:
    """What the numbers depend on: device, driver, versions, commit, date."""
    on_cuda = device.type == "cuda"
    return {
        "form": form,
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads",
        "driver": _driver() if on_cuda else "",
        "cuda": torch.version.cuda if on_cuda else "",
        "torch": torch.__version__,
        "triton": version("triton"),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        "python": platform.python_version(),
        "commit": commit(),
        "date": now(),
    }


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


def _driver() -> str:
    try:
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
