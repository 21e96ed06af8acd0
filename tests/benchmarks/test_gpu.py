"""The one command for a GPU, rehearsed on a CPU: crashes, limits of time, going on, and what it needs of a machine."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu, records
from benchmarks.contest import BOTH, FORMS, FORWARD
from benchmarks.gpu import Session, run_together
from benchmarks.records import FAILED, MEASURED, NOT_REACHED, OUT_OF_MEMORY, STARTED, WRONG, Journal, Record
from benchmarks.suites import SUITES, cases
from crossmae.benchmark import machine


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session that has begun; its plan is that of one suite."""
    monkeypatch.setattr(gpu, "SUITES", ("mixing",))
    session = Session(tmp_path, "tiny")
    session.begin()
    return session


PLANTED = """
import os, signal, warnings
import torch
from benchmarks import ops
from benchmarks.contest import BOTH, FORWARD, Contest, Work
from crossmae_kernels.testing import Problem

def die(x):
    os.kill(os.getpid(), signal.SIGKILL)

def planted(form, size, batch):
    def warning(x):
        warnings.warn("slow")
        return x.square()

    calls = {"reference": lambda x: x * x, "killed": die, "other": warning}
    pose = lambda draw, batch: Problem("", "", {"x": draw.normal(batch, 3)})
    solvers = {name: lambda call=call: call for name, call in calls.items()}
    work = {FORWARD: Work(1, 1), BOTH: Work(2, 2)}
    return [Contest("mixing", {"problem": "squares"}, 4, torch.float32, pose, solvers, work)]

ops.SUITES = {"mixing": planted}
"""


def test_a_crash_costs_its_own_measurement_and_another_session_tries_it_again(session, monkeypatch, tmp_path, capsys):
    pytest_benchmark = pytest.importorskip("pytest_benchmark.cli")
    (tmp_path / "planted.py").write_text(PLANTED)
    for name in [name for name in session.environment if name.startswith("PYTEST_XDIST")]:
        del session.environment[name]  # pytest-benchmark does not run beside other workers
    session.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{records.ROOT}"
    monkeypatch.setattr(gpu, "PYTEST", [*gpu.PYTEST, "-p", "planted"])
    names = ("reference", "killed", "other")
    plan = [Record("mixing", "squares, batch 4", name, way) for way in (BOTH, FORWARD) for name in names]
    machine_of_it = records.read(tmp_path).machine
    (tmp_path / records.FILE).unlink()
    session.journal.write(machine_of_it, records=plan)
    assert session.stage("mixing", 120) == "2 failed"
    run = records.read(tmp_path)
    status = {record.contender: record.status for record in run.records.values()}
    assert status == {"reference": MEASURED, "killed": FAILED, "other": MEASURED}
    killed = run.records["mixing", "squares, batch 4", "killed", BOTH]
    assert killed.reason == "started and never done; the process ended by signal 9"
    assert run.records["mixing", "squares, batch 4", "other", BOTH].stats["median"] > 0
    lines = records.missing(run.records.values())
    assert lines == ["- failed: killed (squares, batch 4). started and never done; the process ended by signal 9"]
    # pytest-benchmark's own file is of the process that came to its end.
    monkeypatch.setattr(sys, "argv", ["pytest-benchmark", f"--storage={tmp_path}", "compare"])
    pytest_benchmark.main()
    shown = capsys.readouterr().out
    assert "squares, batch 4, other, forward" in shown
    assert "killed" not in shown


def test_everything_is_planned_before_anything_is_measured(session, tmp_path):
    run = records.read(tmp_path)
    assert {*run.records} == {case.record.key for case in cases("mixing", FORMS["tiny"])}
    assert {record.status for record in run.records.values()} == {NOT_REACHED}


def test_what_is_done_stays_done_and_the_rest_is_tried_again(session, tmp_path, monkeypatch):
    first, second, third, *_ = records.read(tmp_path).records.values()
    for record, status in ((first, OUT_OF_MEMORY), (second, FAILED), (third, WRONG)):
        record.status, record.reason = status, "because"
        session.journal.write(records=[record])
    session.begin()
    run = records.read(tmp_path)
    assert {key for key, record in run.records.items() if record.reason} == {first.key}
    assert {record.status for key, record in run.records.items() if key != first.key} == {NOT_REACHED}
    for record in run.records.values():
        record.status = MEASURED
    session.journal.write(records=run.records.values())
    (tmp_path / "correctness.txt").touch()
    monkeypatch.setattr(gpu, "run_together", None)  # nothing is run again
    assert session.stage("mixing", 120) == session.stage("correctness", 120) == ""
    monkeypatch.setattr(records, "machine", lambda device: {**machine.machine(device), "commit": "another"})
    with pytest.raises(ValueError, match="has records of commit"):
        session.begin()


SANITIZER = """#!/bin/sh
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"
case "$@" in *"--tool FAILING "*) echo "========= ERROR SUMMARY: 3 errors"; exit 1;; esac
"""


@pytest.mark.parametrize("failing", ["none", "memcheck", "racecheck"])
def test_what_the_sanitizer_reports_is_lacking(session, tmp_path, monkeypatch, failing):
    session.interpret = False
    executable = tmp_path / "compute-sanitizer"
    executable.write_text(SANITIZER.replace("FAILING", failing))
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    lacks = session.stage("sanitizer", 60)
    well = tmp_path / "sanitizer.txt"
    if failing == "none":
        assert (lacks, well.read_text()) == ("", "memcheck, racecheck: no errors\n")
    else:
        assert lacks.startswith(f"{failing} ended with code 1 ")
        assert lacks.endswith("ERROR SUMMARY: 3 errors")
        assert not well.exists()
    words = {tool: (tmp_path / f"{tool}.log").read_text().splitlines()[0].split() for tool in gpu.SANITIZERS}
    assert all(line[0] == "1" and line[line.index("--error-exitcode") + 1] == "1" for line in words.values())
    assert words["memcheck"][-2:] == ["-m", "benchmarks.sanitizer"]
    assert words["racecheck"][-1] == "--in-order"


def test_without_a_sanitizer_a_line_says_so_and_nothing_is_lacking(session, monkeypatch, tmp_path, capsys):
    session.interpret = False
    monkeypatch.setattr("shutil.which", lambda *arguments, **path: None)
    assert session.stage("sanitizer", 60) == "skipped: no compute-sanitizer is installed"
    assert "== sanitizer: skipped: no compute-sanitizer is installed (0 s)" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "SHORT_SECONDS", {"sanitizer": 30})
    assert gpu.main([str(tmp_path), "--rehearse"]) == 0
    assert "- sanitizer: skipped: kernels are interpreted\n" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("code", [0, 1])
def test_kernels_that_are_wrong_are_checked_again(session, tmp_path, monkeypatch, code):
    def ran(commands, seconds, environment, logs):
        for log in logs:
            log.write_text('"verdict": "ok" test_x PASSED')
        return [code, 0]

    monkeypatch.setattr(gpu, "run_together", ran)
    assert bool(session.stage("correctness", 60)) == bool(code)
    assert (tmp_path / "correctness.txt").exists() == (code == 0)


def test_a_journal_survives_whatever_ends_a_process(tmp_path):
    journal = Journal(tmp_path)
    a, b = (Record("mixing", "p", name, BOTH) for name in "ab")
    journal.write({"device": "d", "commit": "c", "date": "2026-01-02"}, records=[a, b])
    a.status, a.reason = FAILED, STARTED
    journal.write(records=[a])
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"records": [{"suite": "mix')  # cut short
    b.status = OUT_OF_MEMORY
    journal.write(records=[b])
    run = records.read(tmp_path)
    found = {record.contender: (record.status, record.reason) for record in run.records.values()}
    assert found == {"a": (FAILED, STARTED), "b": (OUT_OF_MEMORY, "")}
    assert run.machine["device"] == "d"


def test_time_is_a_limit_for_all_that_a_stage_started(tmp_path):
    sleep = [sys.executable, "-S", "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    quick = [sys.executable, "-S", "-c", "print('quick')"]
    logs, begun = [tmp_path / "sleep.log", tmp_path / "quick.log"], time.monotonic()
    assert run_together([sleep, quick], 2, dict(os.environ), logs) == [None, 0]
    assert time.monotonic() - begun < 20
    assert [log.read_text().strip() for log in logs] == ["begun", "quick"]


def test_a_stage_without_time_is_not_reached(session, tmp_path, capsys):
    count = len(records.read(tmp_path).records)
    assert session.stage("mixing", 0) == f"{count} not reached"
    assert "== mixing, 0 s at most\n" in capsys.readouterr().out
    assert records.read(tmp_path).open("mixing") == count


def test_all_stages_fit_into_nine_minutes():
    assert [*gpu.SHORT_SECONDS][:3] == ["sanitizer", "correctness", "tuning"]
    assert {*gpu.SHORT_SECONDS} == {"sanitizer", "correctness", "tuning", *SUITES}
    assert sum(gpu.SHORT_SECONDS.values()) <= 530


@pytest.mark.parametrize(("code", "lacks"), [(0, ""), (None, ""), (1, "ended with code 1")])
def test_tuning_may_run_out_of_time(session, monkeypatch, code, lacks):
    monkeypatch.setattr(gpu, "run_together", lambda *arguments: [code])
    assert session.stage("tuning", 60) == lacks


def test_one_command_goes_all_the_way_and_sums_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SUITES", ("ceilings",))
    monkeypatch.setattr(gpu, "SHORT_SECONDS", {"tuning": 30, "ceilings": 60})
    monkeypatch.setattr(Session, "_tuning", lambda session, seconds: "ended with code 1")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    assert gpu.main([str(tmp_path), "--rehearse"]) == 1
    text = (tmp_path / "summary.md").read_text()
    assert text in capsys.readouterr().out
    assert "kernels in Triton's interpreter" in text
    assert "- tuning: ended with code 1\n- ceilings: done\n" in text
    assert records.read(tmp_path).ceilings.copy > 0


def test_without_pytest_benchmark_a_line_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    with pytest.raises(RuntimeError, match="no package pytest_benchmark here; `make packages`"):
        gpu.main([str(tmp_path / "there"), "--rehearse"])
    assert not (tmp_path / "there").exists()


# What else this package or its tests ask for.
OTHERS = """
    numpy matplotlib tabulate safetensors jsonargparse tqdm PIL sklearn skimage yaml lightning_fabric webdataset
    torchvision tifffile braceexpand tensorboard xdist
"""
BARE = f"""
import sys
sys.modules |= dict.fromkeys({OTHERS.split()})
import benchmarks.bench_suites, benchmarks.conftest, benchmarks.gpu, pytest
from benchmarks import decoders, ops
from benchmarks.contest import FORMS
from crossmae.benchmark.setting import Setting
Setting.__post_init__ = lambda setting: None  # here is no GPU
for suite in ops.SUITES:
    assert all(contest.contenders for contest in ops.contests(suite, FORMS["short"]))
for suite in decoders.SUITES:
    assert decoders.asked(suite, FORMS["short"])
sys.exit(pytest.main(["tests/crossmae_kernels", "-m", "gpu", "--collect-only", "-qq", "-p", "no:cacheprovider"]))
"""


def test_torch_triton_pytest_and_its_benchmark_are_all_that_is_needed():
    environment = os.environ | {"PYTHONPATH": str(records.ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", BARE]
    done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "tests/crossmae_kernels/mlp" in done.stdout
