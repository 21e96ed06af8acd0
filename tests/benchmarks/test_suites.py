"""Suites name their problems; those of pytest-benchmark collect and run, and its records can be compared."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import records
from benchmarks.problem import BOTH, STEP, form_named
from benchmarks.suites import SUITES, problems


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", ["tiny", "small", "short", "full"])
def test_problems_have_distinct_names_and_an_eager_reference_first(suite, name):
    found = problems(suite, form_named(name))
    labels = [problem.label for problem in found]
    assert len(set(labels)) == len(labels) > 0
    for problem in found:
        assert next(iter(problem.contenders)) == "reference"
        assert problem.ours <= set(problem.contenders)
        assert BOTH in problem.work or STEP in problem.work


def test_work_of_mixing_is_what_must_move():
    (problem,) = problems("mixing", form_named("small"))
    one = 4 * 50 * 768 * 4
    assert problem.work["forward"].bytes == (13 + 12) * one
    assert problem.work[BOTH].bytes == (13 + 12 + 13 + 12 + 13) * one


def test_a_suite_runs_under_pytest_benchmark(tmp_path):
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_suites.py", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "patches and gather and forward and not backward", f"--benchmark-json={tmp_path / 'found.json'}"]
    # Nor as a worker of pytest-xdist, among which pytest-benchmark would not run.
    dropped = ("TRITON_INTERPRET", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    content = json.loads((tmp_path / "found.json").read_text())
    found = {b["extra_info"]["contender"]: b["extra_info"] for b in content["benchmarks"]}
    assert found.keys() >= {"reference", "release"}
    assert "of what is allowed" in found["release"]["check"]
