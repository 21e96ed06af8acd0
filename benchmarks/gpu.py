"""Everything that there is to measure on a GPU, with one command: ``python -m benchmarks.gpu``.

Checks the kernels, tunes them, measures every suite, and writes what it found into one folder. Every stage is a
process of its own with a limit of time; one that fails takes nothing with it but itself. A second call goes on where
the first one ended. PyTorch, Triton and pytest are all it needs.
"""

import argparse
import collections
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.measure import MEASURING, START_ANEW
from benchmarks.problem import form_named
from benchmarks.records import ROOT, Run, Stage
from benchmarks.suites import SUITES
from crossmae.files import make_folder, replacing
from crossmae_kernels.command import run_command

# Seconds of the short form; they add up to under nine minutes. What a stage does not need, the next may take.
SHORT_SECONDS = {
    "correctness": 80,
    "tuning": 35,
    "ceilings": 15,
    "decode": 125,
    "mixing": 45,
    "attention": 50,
    "mlp": 30,
    "step": 45,
    "projection": 20,
    "patches": 20,
    "launch": 20,
    "first call": 45,
}
# Of a stage of the full form: only what hangs takes so long.
FULL_SECONDS = 24 * 3600
# A suite begins nothing new in the last share of its time.
LAST_SHARE = 0.15
DONE, FAILED, TIMED_OUT = "done", "failed", "timed out"


@dataclass(frozen=True)
class Ended:
    """A process that ended or was ended."""

    code: int | None
    """None if its time was up."""
    output: str
    errors: str
    """What it wrote to stderr."""


def run_together(
    commands: Sequence[Sequence[str]], seconds: float, environment: dict[str, str], echo: bool
) -> list[Ended]:
    """Run commands at the same time and end all that is left of them when time is up."""
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        temporary = functools.partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
        files = [[stack.enter_context(temporary()) for _ in range(2)] for _ in commands]
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=None if echo else output,
                stderr=None if echo else errors,
                start_new_session=True,
            )
            for command, (output, errors) in zip(commands, files, strict=True)
        ]
        codes: list[int | None] = []
        try:
            for process in processes:
                try:
                    codes.append(process.wait(max(0.0, end - time.monotonic())))
                except subprocess.TimeoutExpired:
                    codes.append(None)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for file in itertools.chain(*files):
            file.seek(0)
        return [Ended(code, *(file.read() for file in both)) for code, both in zip(codes, files, strict=True)]


class Session:
    """One call of the command, in its folder."""

    def __init__(self, folder: Path, form: str, minutes: float | None) -> None:
        self.folder, self.form = folder, form
        scale = None if minutes is None else minutes * 60 / (sum(SHORT_SECONDS.values()) + 10)
        self.seconds = {
            name: FULL_SECONDS if scale is None else seconds * scale for name, seconds in SHORT_SECONDS.items()
        }
        self.end = time.monotonic()
        self.interpret = form == "tiny"
        self.environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            # Many small files, of this commit's kernels: no part of the record.
            "CROSSMAE_KERNELS_CACHE": f"{tempfile.gettempdir()}/crossmae-kernels-tuning-{records.commit()}",
            "CROSSMAE_KERNELS_TUNE": "recall",
            # On a GPU kernels are compiled whatever the caller's environment says.
            "TRITON_INTERPRET": "1" if self.interpret else "0",
        }

    def begin(self) -> None:
        """Open the folder's record, or refuse one of another commit, device or form; forget what is to be retried."""
        make_folder(self.folder)
        now = records.machine(form_named(self.form).device, self.form)
        now["interpreted"] = self.interpret
        if not (self.folder / records.FILE).is_file():
            records.write(Run(now), self.folder)
        with records.updating(self.folder) as run:
            for what in ("commit", "device", "form"):
                if run.machine[what] != now[what]:
                    raise SystemExit(f"{self.folder} has records of {what} {run.machine[what]}, this is {now[what]}")
            run.records = {key: r for key, r in run.records.items() if r.status in records.FINAL}
        (self.folder / MEASURING).unlink(missing_ok=True)

    def stage(self, name: str) -> None:
        """Run a stage that is not done yet, and write down how it ended."""
        self.end += self.seconds[name]
        before = records.read(self.folder).stages.get(name)
        if before is not None and before.status == DONE:
            print(f"== {name}: done before", flush=True)
            return
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        left = self.end - begun
        if left < 1:
            stage = Stage(records.NOT_REACHED, "no time was left")
        elif name == "correctness":
            stage = self._correctness(left)
        elif name == "first call":
            stage = self._process([sys.executable, "-m", "benchmarks.first_call", str(self.folder), self.form], left)
        else:
            stage = self._measuring(name, left)
        stage.seconds = round(time.monotonic() - begun, 1)
        with records.updating(self.folder) as run:
            run.stages[name] = stage
        print(f"== {name}: {stage.status} {stage.reason} ({stage.seconds:.0f} s)", flush=True)

    def _process(self, command: list[str], seconds: float, environment: dict[str, str] | None = None) -> Stage:
        (ended,) = run_together([command], seconds, environment or self.environment, echo=True)
        if ended.code is None:
            return Stage(TIMED_OUT, f"ended after {seconds:.0f} s")
        return Stage(DONE) if ended.code == 0 else Stage(FAILED, _exit(ended.code))

    def _measuring(self, name: str, seconds: float) -> Stage:
        """A suite, the ceilings or tuning; started anew after a crash, without what crashed.

        Tuning keeps each kernel's result as soon as it is there, so it may be ended at any time.
        """
        environment = self.environment | ({"CROSSMAE_KERNELS_TUNE": "1"} if name == "tuning" else {})
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            command = [sys.executable, "-m", "benchmarks.measure", str(self.folder), name, "--form", self.form]
            command += ["--until", str(time.time() + left - LAST_SHARE * seconds)]
            stage = self._process(command, left, environment)
            crashed = self._blame(stage)
            again = crashed or stage.reason == _exit(START_ANEW)
            if name not in SUITES or stage.status != FAILED or not again:
                break
        return self._judged(name, stage) if name in SUITES else stage

    def _blame(self, stage: Stage) -> bool:
        """Put a dead process down to what it was measuring; whether there was something."""
        marker = self.folder / MEASURING
        if stage.status == DONE or not marker.is_file():
            return False
        key = tuple(json.loads(marker.read_text("utf-8")))
        with records.updating(self.folder) as run:
            if key in run.records:
                run.records[key].status, run.records[key].date = records.FAILED, records.now()
                run.records[key].reason = f"the process {stage.status}: {stage.reason}"
        marker.unlink()
        return True

    def _judged(self, suite: str, stage: Stage) -> Stage:
        """A suite is done if each of its records is final."""
        found = collections.Counter(r.status for r in records.read(self.folder).records.values() if r.suite == suite)
        open_ = {status: count for status, count in found.items() if status not in records.FINAL}
        stage.facts = dict(found)
        if stage.status == DONE and (open_ or not found):
            stage.status = FAILED if set(open_) - {records.NOT_REACHED} else TIMED_OUT
            stage.reason = ", ".join(f"{count} {status}" for status, count in open_.items())
        return stage

    def _correctness(self, seconds: float) -> Stage:
        """The kernel check and the tests that need this device, side by side: they time nothing."""
        check = [sys.executable, "-m", "crossmae_kernels.check", "--json", *(["--interpret"] if self.interpret else [])]
        pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        if self.interpret:
            groups = [[*pytest, "tests/crossmae_kernels/primitives/test_segmented_sum.py"]]
        else:
            folders = sorted({path.parent for path in (ROOT / "tests" / "crossmae_kernels").glob("*/test_*.py")})
            # The check covers every dtype; the tests only bfloat16, which nothing but a GPU shows, unless time allows.
            chosen = [] if self.form == "full" else ["-k", "not cuda-float"]
            groups = [[*pytest, "-m", "gpu", *chosen, str(folder.relative_to(ROOT))] for folder in folders]
        checked, *tested = run_together([check, *groups], seconds, self.environment, echo=False)
        with replacing(self.folder / "tests.log") as beside:
            parts = [f"# {g[-1]}\n{e.output}{e.errors}" for g, e in zip(groups, tested, strict=True)]
            beside.write_text("\n".join(parts), "utf-8")
        with replacing(self.folder / "checks.json") as beside:
            beside.write_text(checked.output, "utf-8")
        verdicts = collections.Counter(re.findall(r'"verdict": "(\w+)"', checked.output))
        outcomes = collections.Counter(
            w for e in tested for w in re.findall(r" (PASSED|FAILED|ERROR|SKIPPED)\b", e.output)
        )
        wrong = [f"check {_exit(checked.code)} {checked.errors[-300:]}".strip()] if checked.code != 0 else []
        # 5: no test of that folder needs a GPU.
        wrong += [f"{g[-1]} {_exit(e.code)}" for g, e in zip(groups, tested, strict=True) if e.code not in (0, 5)]
        facts = {"checks": dict(verdicts), "tests": dict(outcomes)}
        print(f"   {facts}", flush=True)
        return Stage(FAILED if wrong else DONE, "; ".join(wrong), facts=facts)


def _exit(code: int | None) -> str:
    if code is None:
        return "ended for time"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"


def summary(run: Run) -> tuple[list[str], bool]:
    """What is there, what is missing and why; and whether nothing is."""
    lines, whole = [run.where, ""], True
    for name in SHORT_SECONDS:
        stage = run.stages.get(name, Stage(records.NOT_REACHED))
        # In a few minutes tuning gets as far as it gets.
        whole &= stage.status == DONE or (name == "tuning" and stage.status == TIMED_OUT)
        facts = ", ".join(f"{count} {what}" for what, count in stage.facts.items())
        lines.append(f"- {name}: {stage.status}. {stage.reason} {facts}".rstrip())
    reasons = collections.defaultdict[tuple[str, str, str], list[str]](list)
    for record in run.records.values():
        if record.status != records.MEASURED:
            reasons[record.suite, record.status, record.reason].append(
                f"{record.problem}: {record.contender}, {record.direction}"
            )
    for (suite, status, reason), keys in sorted(reasons.items()):
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        lines.append(f"- {suite}, {status}: {'; '.join(keys[:3])}{more}. {reason}".rstrip())
    return lines, whole


def default_folder(form: str) -> Path:
    """``$OUT`` where it is set, else a folder of this device and commit."""
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    device = form_named(form).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return ROOT / "benchmarks" / "results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{records.commit()[:10]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run yet; 0 if nothing is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="for records; $OUT or benchmarks/results/DEVICE-COMMIT")
    parser.add_argument("--full", action="store_true", help="every size, batch and compiler, without a limit of time")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the short form (9)")
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU: tiny, in Triton's interpreter")
    parser.add_argument("--stages", nargs="+", choices=tuple(SHORT_SECONDS), default=tuple(SHORT_SECONDS))
    options = parser.parse_args(argv)
    form = "tiny" if options.rehearse else "full" if options.full else "short"
    if form != "tiny" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --rehearse goes the same way on a CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended by signal {signal.SIGTERM}"))  # stages end with it
    session = Session(options.folder or default_folder(form), form, None if form == "full" else options.minutes)
    session.begin()
    for name in options.stages:
        session.stage(name)
    run = records.read(session.folder)
    lines, whole = summary(run)
    with replacing(session.folder / "summary.md") as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))
    print(f"\nRecords: {session.folder}. Tables and pictures: python -m benchmarks.report {session.folder}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.gpu", main))
