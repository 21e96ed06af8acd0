"""Every suite but ``decode`` under pytest-benchmark: calls from Python, each contender checked first."""

import time
from typing import Any

import pytest
import torch

from benchmarks.checking import Check, Checks
from benchmarks.largest_batch import largest_batch
from benchmarks.measure import Case, cases, planned
from benchmarks.problem import LARGEST, MissingError, Solver, form_named
from benchmarks.records import machine
from benchmarks.suites import SUITES
from benchmarks.timing import passes
from crossmae.measure import wait_for_device
from crossmae_kernels.runtime.dispatch import REFUSAL

FORM = form_named("short" if torch.cuda.is_available() else "small")
# Rounds at least, and at most as long as they fit into so many seconds.
ROUNDS, MOST_ROUNDS, SECONDS = 20 if FORM.device.type == "cuda" else 5, 50, 0.3

CASES = [
    pytest.param(case, id=f"{suite}: {case[0].label}: {case[1]}, {case[2]}")
    for suite in SUITES
    if suite != "decode"
    for case in cases(suite, FORM)
]

checks = Checks(FORM.device)


def solver_of(case: Case) -> tuple[Solver, Check]:
    """The contender, right on this problem; skips where it is missing, with the reason."""
    problem, name, _ = case
    try:
        solver = problem.contenders[name]()
        return solver, checks.check(problem, name, solver)
    except (MissingError, ImportError) as missing:
        pytest.skip(str(missing))
    except RuntimeError as refused:
        if name in problem.ours and REFUSAL not in str(refused):
            raise
        pytest.skip(str(refused).split(REFUSAL)[-1])


@pytest.mark.parametrize("case", CASES)
def test_suite(benchmark: Any, case: Case) -> None:
    """Time one contender on one problem in one direction."""
    solver, check = solver_of(case)
    problem, name, direction = case
    record = planned(case)
    if direction == LARGEST:
        # What is timed is the search; what it finds stands beside it.
        found = benchmark.pedantic(largest_batch, (problem, solver, FORM.device, FORM.most_images))
        benchmark.extra_info["largest"], _ = found
    else:
        first, *_ = passes(problem, solver, direction, FORM.device)

        def run() -> None:
            first()
            wait_for_device()

        begun = time.perf_counter()
        run()
        rounds = SECONDS / (time.perf_counter() - begun)
        benchmark.pedantic(run, rounds=int(max(ROUNDS, min(rounds, MOST_ROUNDS))), warmup_rounds=1)
    benchmark.extra_info.update(
        suite=record.suite,
        problem=record.problem,
        contender=name,
        direction=direction,
        about=record.about,
        dtype=record.dtype,
        device=machine(FORM.device, FORM.name)["device"],
        torch=torch.__version__,
        check=f"{check.result}: {check.share:.3g} of what is allowed",
    )
