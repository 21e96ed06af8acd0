"""Everything that there is to measure on a GPU, with one command: ``python -m benchmarks.gpu``.

Watches what the kernels read and write, checks them, tunes them, runs every suite, and adds what it found to the record
of one folder. Every stage is a process of its own with a limit of time; one that fails loses nothing but itself. A
second call continues where the first one ended.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.contest import FORMS
from benchmarks.records import ROOT, Journal, missing
from benchmarks.suites import SUITES, cases
from crossmae.benchmark.machine import commit, machine, where
from crossmae_kernels.command import run_command

# Seconds of the short form; they add up to under nine minutes. What a stage does not need, the next may take.
# Autotuning, by estimate, takes 20 s of them for each of four ops and 40 to 60 for each of three decoders.
# The sanitizer's cases take 15 s of a CPU to compile (measured), and an unknown time to be watched.
SHORT_SECONDS = {
    "sanitizer": 40,
    "correctness": 75,
    "tuning": 35,
    "ceilings": 10,
    "decode": 180,
    "kernels": 10,
    "mixing": 45,
    "attention": 45,
    "mlp": 30,
    "step": 30,
    "projection": 10,
    "patches": 10,
    "launch": 10,
}
# Of compute-sanitizer, by tool: its own options, then those of the cases that it watches.
SANITIZERS: dict[str, tuple[list[str], list[str]]] = {
    "memcheck": ([], []),
    # Mere warnings are about threads of a warp that run in step anyway.
    "racecheck": (["--racecheck-detect-level", "error"], ["--in-order"]),
}
SKIPPED = "skipped"
# A stage of the full form: only one that hangs takes so long.
FULL_SECONDS = 24 * 3600
# A suite begins nothing new in the last share of its time.
LAST_SHARE = 0.15
# A machine with a GPU may have no network: `make packages` fills this elsewhere.
PACKAGES = ROOT / ".packages"
# Not the cache: the tree may be read-only. Whatever else is installed stays out of what is timed.
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
# Exit codes of pytest: all passed, some failed, none was left to run.
WELL = (0, 1, 5)


def run_together(
    commands: Sequence[Sequence[str]], seconds: float, environment: dict[str, str], logs: Sequence[Path] = ()
) -> list[int | None]:
    """Run commands at the same time, each into its log if there are any, and end all that they started in time.

    Returns their exit codes, None of those whose time was up.
    """
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        files: list[Any] = [stack.enter_context(log.open("w", encoding="utf-8")) for log in logs] or [None] * len(
            commands
        )
        start = functools.partial(subprocess.Popen, cwd=ROOT, env=environment, start_new_session=True)
        processes = [
            start(command, stdout=file, stderr=file and subprocess.STDOUT)
            for command, file in zip(commands, files, strict=True)
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
    return codes


def how(code: int | None) -> str:
    """A process with this exit code ended."""
    if code is None:
        return "ended for time"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"


def complaints(logs: Sequence[Path], codes: Sequence[int | None], well: Sequence[int] = (0,)) -> str:
    """How each process that did not end well did end, and the end of its log unless its time was up."""
    found = []
    for log, code in zip(logs, codes, strict=True):
        if code not in well:
            end = log.read_text("utf-8", errors="replace")[-300:] if code else ""
            found.append(f"{log.stem} {how(code)} {' '.join(end.split())}".strip())
    return "; ".join(found)


class Session:
    """One call of the command, in its folder. A stage returns what it lacks, in words; nothing where it is whole."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, FORMS[form]
        self.interpret = form == "tiny"
        self.environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            # Many small files, of this commit's kernels: no part of the record.
            "CROSSMAE_KERNELS_CACHE": f"{tempfile.gettempdir()}/crossmae-kernels-tuning-{commit()}",
            "CROSSMAE_KERNELS_TUNE": "recall",
            # On a GPU kernels are compiled whatever the caller's environment says.
            "TRITON_INTERPRET": "1" if self.interpret else "0",
        }
        self.journal = Journal(folder)

    def begin(self) -> None:
        """Plan in the folder's record all that it lacks, or refuse one of another commit, device or form."""
        before = records.begin(self.folder, self.form, interpreted=self.interpret)
        done = {key for key, record in before.records.items() if record.status in records.FINAL}
        planned = [case.record for suite in SUITES for case in cases(suite, self.form)]
        self.journal.write(records=[record for record in planned if record.key not in done])

    def stage(self, name: str, seconds: float) -> str:
        """Run one, within a limit of time."""
        print(f"== {name}, {seconds:.0f} s at most", flush=True)
        begun = time.monotonic()
        run = {"sanitizer": self._sanitizer, "correctness": self._correctness, "tuning": self._tuning}.get(name)
        lacks = run(seconds) if run else self._suite(name, seconds)
        print(f"== {name}: {lacks or 'done'} ({time.monotonic() - begun:.0f} s)", flush=True)
        return lacks

    def _sanitizer(self, seconds: float) -> str:
        """A small case of each kernel under each of compute-sanitizer's tools, side by side."""
        well = self.folder / "sanitizer.txt"
        if well.is_file():
            return ""
        sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if self.interpret or sanitizer is None:
            return f"{SKIPPED}: {'kernels are interpreted' if self.interpret else 'no compute-sanitizer is installed'}"
        # The compilers that Triton starts are none of its business.
        watched = [sanitizer, "--error-exitcode", "1", "--target-processes", "application-only"]
        cases = [sys.executable, "-m", "benchmarks.sanitizer"]
        commands = [[*watched, "--tool", tool, *own, *cases, *of_cases] for tool, (own, of_cases) in SANITIZERS.items()]
        logs = [self.folder / f"{tool}.log" for tool in SANITIZERS]
        # PyTorch's cache of memory would hide what is read or written beyond a tensor.
        codes = run_together(commands, seconds, self.environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, logs)
        wrong = complaints(logs, codes)
        if not wrong:
            well.write_text(f"{', '.join(SANITIZERS)}: no errors\n", "utf-8")
        return wrong

    def _correctness(self, seconds: float) -> str:
        """The kernel check and the tests that need this device, side by side: they time nothing."""
        well = self.folder / "correctness.txt"
        if well.is_file():
            return ""
        check = [sys.executable, "-m", "crossmae_kernels.check", "--json", *(["--interpret"] if self.interpret else [])]
        tests = ROOT / "tests" / "crossmae_kernels"
        if self.interpret:
            groups = [[tests / "primitives" / "test_segmented_sum.py"]]
        else:
            folders = sorted({path.parent for path in tests.glob("*/test_*.py")})
            groups = [sorted(tests.glob("test_*.py")), *([folder] for folder in folders)]
        # The check covers every dtype; the tests only bfloat16, in which models are trained, unless time allows.
        chosen = ["-m", "gpu"] if not self.interpret else []
        chosen += ["-k", "not cuda-float"] if self.form.name == "short" else []
        commands = [check, *([*PYTEST, "-v", *chosen, *map(str, group)] for group in groups)]
        logs = [self.folder / "checks.log", *(self.folder / f"tests-{group[-1].stem}.log" for group in groups)]
        codes = run_together(commands, seconds, self.environment, logs)
        wrong = complaints(logs, codes, well=(0, 5))  # 5: no test of that folder needs a GPU
        checked, *tested = [log.read_text("utf-8", errors="replace") for log in logs]
        outcomes = re.findall(r" (PASSED|FAILED|ERROR|SKIPPED)\b", "".join(tested))
        facts = dict(collections.Counter(re.findall(r'"verdict": "(\w+)"', checked) + outcomes))
        print(f"   {facts}", flush=True)
        if not wrong:
            well.write_text(f"{facts}\n", "utf-8")
        return wrong

    def _tuning(self, seconds: float) -> str:
        """Each kernel's result is kept as soon as it is known: ended for time, it got as far as that, which is well."""
        command = [sys.executable, "-c", f"from benchmarks.decoders import tune; tune({self.form.name!r})"]
        (code,) = run_together([command], seconds, self.environment | {"CROSSMAE_KERNELS_TUNE": "all"})
        return how(code) if code else ""

    def _suite(self, name: str, seconds: float) -> str:
        """Started anew after a crash, without what crashed; whole if each of its records is final."""
        end = time.monotonic() + seconds
        command = [*PYTEST, "benchmarks/bench_suites.py", "-v", "--benchmark-quiet", "--form", self.form.name]
        command += ["--suite", name, "--record", str(self.folder)]
        command += [f"--benchmark-storage={self.folder}", f"--benchmark-save={name}"]
        command += ["--until", str(time.time() + (1 - LAST_SHARE) * seconds)]
        while (before := records.read(self.folder).open(name)) and end > time.monotonic():
            (code,) = run_together([command], end - time.monotonic(), self.environment)
            run = records.read(self.folder)
            crashed = [record for record in run.records.values() if record.reason == records.STARTED]
            for record in crashed:
                record.reason += f"; the process {how(code)}"
            self.journal.write(records=crashed)
            if code in (None, *WELL) or run.open(name) == before:
                break
        found = [record.status for record in records.read(self.folder).records.values() if record.suite == name]
        counts = collections.Counter(status for status in found if status not in records.FINAL)
        return ", ".join(f"{count} {status}" for status, count in counts.items())


def default_folder(form: str) -> Path:
    """``$OUT`` where it is set, else a folder of this device and commit."""
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    name = machine(FORMS[form].device)["device"]
    return ROOT / "benchmarks" / "results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{commit()[:10]}"


def require_packages() -> None:
    """Raise RuntimeError if pytest-benchmark is missing, here and among the packages brought along."""
    sys.path.insert(0, str(PACKAGES))
    absent = [name for name in ("pytest", "pytest_benchmark", "cpuinfo") if importlib.util.find_spec(name) is None]
    if absent:
        raise RuntimeError(
            f"no package {', '.join(absent)} here; `make packages`, where there is a network, puts it into {PACKAGES}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run yet; returns 0 if nothing is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="for records; $OUT or benchmarks/results/DEVICE-COMMIT")
    parser.add_argument("--full", action="store_true", help="every size, batch and compiler, without a limit of time")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of the others (9)")
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU: tiny, in Triton's interpreter")
    options = parser.parse_args(argv)
    form = "tiny" if options.rehearse else "full" if options.full else "short"
    require_packages()
    if form != "tiny" and not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device; --rehearse goes the same way on a CPU")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended by signal {signal.SIGTERM}"))  # stages end with it
    session = Session(options.folder or default_folder(form), form)
    session.begin()
    lines, whole, end = [], True, time.monotonic()
    for name, seconds in SHORT_SECONDS.items():
        end += FULL_SECONDS if form == "full" else seconds * options.minutes / 9
        lacks = session.stage(name, end - time.monotonic())
        whole &= not lacks or lacks.startswith(SKIPPED)
        lines.append(f"- {name}: {lacks or 'done'}")
    run = records.read(session.folder)
    text = "\n".join([where(run.machine), "", *lines, *missing(run.records.values())])
    (session.folder / "summary.md").write_text(f"{text}\n", "utf-8")
    print(f"{text}\n\nRecord: {session.folder}. Tables and pictures: python -m benchmarks.report {session.folder}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.gpu", main))
