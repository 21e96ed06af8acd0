"""Everything that there is to measure on a GPU, with one command: ``python -m benchmarks.gpu``.

Checks the kernels, tunes them, runs every suite, and adds what it found to the record of one folder. Every stage is a
process of its own with a limit of time; one that fails takes nothing with it but itself. A second call goes on where
the first one ended.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.contest import FORMS
from benchmarks.records import DONE, FAILED, NOT_REACHED, ROOT, TIMED_OUT, Journal, Run, Stage, missing
from benchmarks.suites import SUITES, cases, planned
from crossmae.files import make_folder, replacing
from crossmae_kernels.command import run_command

# Seconds of the short form; they add up to under nine minutes. What a stage does not need, the next may take.
SHORT_SECONDS = {
    "correctness": 85,
    "tuning": 40,
    "ceilings": 20,
    "decode": 135,
    "mixing": 50,
    "attention": 55,
    "mlp": 35,
    "step": 45,
    "projection": 20,
    "patches": 20,
    "launch": 25,
}
# Of a stage of the full form: only what hangs takes so long.
FULL_SECONDS = 24 * 3600
# A suite begins nothing new in the last share of its time.
LAST_SHARE = 0.15
# A machine with a GPU may have no network: `make packages` fills this elsewhere.
PACKAGES = ROOT / ".packages"
# Not the cache: the tree may be read-only. Whatever else is installed stays out of what is timed.
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
# Exit codes of pytest: all passed, some failed, none was left to run.
WELL = (0, 1, 5)


@dataclass(frozen=True)
class Ended:
    """A process that ended or was ended."""

    code: int | None
    """None if its time was up."""
    output: str = ""
    errors: str = ""

    def __str__(self) -> str:
        if self.code is None:
            return "ended for time"
        return f"ended by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"


def run_together(
    commands: Sequence[Sequence[str]], seconds: float, environment: dict[str, str], echo: bool
) -> list[Ended]:
    """Run commands at the same time and end all that they started when time is up."""
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
        for both in files:
            for file in both:
                file.seek(0)
        return [Ended(code, *(file.read() for file in both)) for code, both in zip(codes, files, strict=True)]


class Session:
    """One call of the command, in its folder."""

    def __init__(self, folder: Path, form: str, minutes: float) -> None:
        self.folder, self.form = folder, form
        scale = minutes * 60 / (sum(SHORT_SECONDS.values()) + 10)
        self.seconds = {
            name: FULL_SECONDS if form == "full" else seconds * scale for name, seconds in SHORT_SECONDS.items()
        }
        self.end = time.monotonic()
        self.interpret = form == "tiny"
        self.environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            # Many small files, of this commit's kernels: no part of the record.
            "CROSSMAE_KERNELS_CACHE": f"{tempfile.gettempdir()}/crossmae-kernels-tuning-{records.commit()}",
            "CROSSMAE_KERNELS_TUNE": "recall",
            # On a GPU kernels are compiled whatever the caller's environment says.
            "TRITON_INTERPRET": "1" if self.interpret else "0",
        }
        self.journal = Journal(folder)

    def begin(self) -> None:
        """Open the folder's record, or refuse one of another commit, device or form."""
        make_folder(self.folder)
        form = FORMS[self.form]
        now = records.machine(form.device) | {"form": self.form, "interpreted": self.interpret}
        now |= {"commit": records.commit(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        if (self.folder / records.FILE).is_file():
            before = records.read(self.folder).machine
            for what in ("commit", "device", "form"):
                if before[what] != now[what]:
                    raise ValueError(f"{self.folder} has records of {what} {before[what]}, this is {now[what]}")
        self.journal.write("session", now)
        self.journal.write("planned", [asdict(planned(case)) for suite in SUITES for case in cases(suite, form)])

    def stage(self, name: str) -> None:
        """Run a stage that is not done yet, and write down how it ended."""
        self.end += self.seconds[name]
        if name in records.read(self.folder).stages:
            print(f"== {name}: done before", flush=True)
            return
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        left = self.end - begun
        if left < 1:
            stage = Stage(NOT_REACHED, "no time was left")
        elif name == "correctness":
            stage = self._correctness(left)
        elif name == "tuning":
            stage = self._tuning(left)
        else:
            stage = self._suite(name, left)
        stage.seconds = round(time.monotonic() - begun, 1)
        self.journal.write("stage", {name: asdict(stage)})
        print(f"== {name}: {stage.status} {stage.reason} ({stage.seconds:.0f} s)", flush=True)

    def _tuning(self, seconds: float) -> Stage:
        """Each kernel's result is kept as soon as it is there, so this may be ended at any time."""
        command = [sys.executable, "-m", "benchmarks.tune", self.form]
        (ended,) = run_together([command], seconds, self.environment | {"CROSSMAE_KERNELS_TUNE": "1"}, echo=True)
        if ended.code is None:
            return Stage(TIMED_OUT, f"after {seconds:.0f} s")
        return Stage(FAILED, str(ended)) if ended.code else Stage(DONE)

    def _suite(self, name: str, seconds: float) -> Stage:
        """Started anew after a crash, without what crashed; done if each of its records is final."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            command = [*PYTEST, "benchmarks/bench_suites.py", "-v", "--benchmark-quiet", "--form", self.form]
            command += ["--suite", name, "--record", str(self.folder)]
            command += ["--until", str(time.time() + left - LAST_SHARE * seconds)]
            before = records.read(self.folder).open(name)
            (ended,) = run_together([command], left, self.environment, echo=True)
            self.journal.write("ended", str(ended))
            if ended.code in (None, *WELL) or records.read(self.folder).open(name) == before:
                break
        found = [r for r in records.read(self.folder).records.values() if r.suite == name]
        facts = dict(collections.Counter(record.status for record in found))
        unfinished = {status: count for status, count in facts.items() if status not in records.FINAL}
        reasons = [f"{count} {status}" for status, count in unfinished.items()]
        if ended.code not in (None, *WELL):
            reasons.append(f"the process {ended}")
        if not reasons:
            return Stage(DONE, facts=facts)
        timed_out = unfinished.keys() == {NOT_REACHED} and ended.code in (None, *WELL)
        return Stage(TIMED_OUT if timed_out else FAILED, ", ".join(reasons), facts=facts)

    def _correctness(self, seconds: float) -> Stage:
        """The kernel check and the tests that need this device, side by side: they time nothing."""
        check = [sys.executable, "-m", "crossmae_kernels.check", "--json", *(["--interpret"] if self.interpret else [])]
        tests = ROOT / "tests" / "crossmae_kernels"
        if self.interpret:
            groups = [[*PYTEST, "-v", str(tests / "primitives" / "test_segmented_sum.py")]]
        else:
            folders = [[path] for path in sorted({path.parent for path in tests.glob("*/test_*.py")})]
            apart = [sorted(tests.glob("test_*.py")), *folders]
            # The check covers every dtype; the tests only bfloat16, in which models are trained, unless time allows.
            chosen = ["-m", "gpu", *([] if self.form == "full" else ["-k", "not cuda-float"])]
            groups = [[*PYTEST, "-v", *chosen, *map(str, paths)] for paths in apart]
        checked, *tested = run_together([check, *groups], seconds, self.environment, echo=False)
        with replacing(self.folder / "tests.log") as beside:
            parts = [f"# {g[-1]}\n{e.output}{e.errors}" for g, e in zip(groups, tested, strict=True)]
            beside.write_text("\n".join(parts), "utf-8")
        with replacing(self.folder / "checks.json") as beside:
            beside.write_text(checked.output, "utf-8")
        verdicts = collections.Counter(re.findall(r'"verdict": "(\w+)"', checked.output))
        outcomes = collections.Counter(
            word for e in tested for word in re.findall(r" (PASSED|FAILED|ERROR|SKIPPED)\b", e.output)
        )
        wrong = [f"check {checked} {checked.errors[-300:]}".strip()] if checked.code != 0 else []
        # 5: no test of that folder needs a GPU.
        wrong += [f"{g[-1]} {e}" for g, e in zip(groups, tested, strict=True) if e.code not in (0, 5)]
        facts = {"checks": dict(verdicts), "tests": dict(outcomes)}
        print(f"   {facts}", flush=True)
        return Stage(FAILED if wrong else DONE, "; ".join(wrong), facts=facts)


def summary(run: Run) -> tuple[list[str], bool]:
    """What is there, what is missing and why; and whether nothing is."""
    lines, whole = [run.where, ""], True
    for name in SHORT_SECONDS:
        stage = run.stages.get(name, Stage(NOT_REACHED))
        # In a few minutes tuning gets as far as it gets.
        whole &= stage.status == DONE or (name == "tuning" and stage.status == TIMED_OUT)
        facts = ", ".join(f"{count} {what}" for what, count in stage.facts.items())
        lines.append(f"- {name}: {stage.status}. {stage.reason} {facts}".rstrip())
    for suite in SUITES:
        absent = missing(record for record in run.records.values() if record.suite == suite)
        lines += [f"{suite}:", *absent] if absent else []
    return lines, whole


def default_folder(form: str) -> Path:
    """``$OUT`` where it is set, else a folder of this device and commit."""
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    name = records.machine(FORMS[form].device)["device"]
    return ROOT / "benchmarks" / "results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{records.commit()[:10]}"


def require_packages() -> None:
    """Raise RuntimeError if pytest-benchmark is missing, here and among the packages brought along."""
    sys.path.insert(0, str(PACKAGES))
    missing = [name for name in ("pytest", "pytest_benchmark", "cpuinfo") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"no package {', '.join(missing)} here; `make packages`, where there is a network, puts it into {PACKAGES}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run yet; 0 if nothing is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="for records; $OUT or benchmarks/results/DEVICE-COMMIT")
    parser.add_argument("--full", action="store_true", help="every size, batch and compiler, without a limit of time")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the short form (9)")
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU: tiny, in Triton's interpreter")
    parser.add_argument("--stages", nargs="+", choices=SHORT_SECONDS, default=SHORT_SECONDS)
    options = parser.parse_args(argv)
    form = "tiny" if options.rehearse else "full" if options.full else "short"
    require_packages()
    if form != "tiny" and not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device; --rehearse goes the same way on a CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended by signal {signal.SIGTERM}"))  # stages end with it
    session = Session(options.folder or default_folder(form), form, options.minutes)
    session.begin()
    for name in options.stages:
        session.stage(name)
    run = records.read(session.folder)
    lines, whole = summary(run)
    with replacing(session.folder / "summary.md") as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8")
    with replacing(session.folder / "benchmark.json") as beside:
        beside.write_text(json.dumps(run.as_pytest_benchmark(), indent=1), "utf-8")
    print("\n".join(lines))
    print(f"\nRecord: {session.folder}. Tables and pictures: python -m benchmarks.report {session.folder}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.gpu", main))
