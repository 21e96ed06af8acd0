"""Every suite: each contender is checked on the problem that it is timed on, and then timed."""

import contextlib
import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import records, suites
from benchmarks.checking import WrongError, check
from benchmarks.contest import BOTH, FORMS, Contest, Direction, Form, MissingError, Solver
from benchmarks.records import Journal, Record
from benchmarks.suites import Case
from benchmarks.timing import CLOCK, Pass, cycled, passes, peak_memory, quartiles, replayed, rounds_of, timed
from crossmae.measure import bytes_saved_for_backward
from crossmae_kernels.runtime.dispatch import REFUSAL
from crossmae_kernels.runtime.records import present
from crossmae_kernels.runtime.tuning import mode

# The exit code where the device no longer works in this process; it may in a new one.
START_ANEW = 9
PARENT = os.getppid()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases that are asked for and have no record yet."""
    option = metafunc.config.option
    there = records.read(Path(option.record)).records if option.record else {}
    chosen = [case for suite in option.suite or suites.SUITES for case in suites.cases(suite, FORMS[option.form])]
    keys = {suites.planned(case).key: case for case in chosen}
    todo = {key: case for key, case in keys.items() if key not in there or there[key].status == records.NOT_REACHED}
    metafunc.parametrize("case", [pytest.param(case, id=", ".join(key)) for key, case in todo.items()])


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.filterwarnings("default")  # a contender that warns still competes
def test_suite(benchmark: Any, pytestconfig: pytest.Config, case: Case) -> None:
    """Check and time one contender on one problem in one direction."""
    option = pytestconfig.option
    if time.time() > option.until or os.getppid() != PARENT:
        pytest.skip(records.NOT_REACHED)
    record, form = suites.planned(case), FORMS[option.form]
    journal = Journal(Path(option.record) if option.record else None)
    record.status, record.reason = records.FAILED, records.STARTED
    journal.write(records=[record])
    attempt(benchmark, record, case, form)
    journal.write(records=[record])
    # The failure is released by now, and with it what it held on the device.
    gc.collect()
    if not usable(form.device):
        pytest.exit(f"{record.key}: the device does not answer any more", START_ANEW)
    if form.device.type == "cuda":
        torch.cuda.empty_cache()
    if record.status in (records.MISSING, records.OUT_OF_MEMORY):
        pytest.skip(record.reason)
    if record.status != records.MEASURED:
        pytest.fail(f"{record.status}: {record.reason}", pytrace=False)


def attempt(benchmark: Any, record: Record, case: Case, form: Form) -> None:
    """Check and measure; whatever goes wrong is written into the record."""
    contest, name, direction = case
    try:
        solver = contest.contenders[name]()
        record.check = check(contest, name, solver, form.device)
        measure(benchmark, record, contest, solver, direction, form)
        record.status, record.reason = records.MEASURED, ""
        benchmark.extra_info |= record.extra_info
    except WrongError as wrong:
        record.status, record.reason = records.WRONG, str(wrong)
    except Exception as failure:
        record.status, record.reason = why(failure, contest.ours(name))


def measure(benchmark: Any, record: Record, contest: Contest, solver: Solver, direction: Direction, form: Form) -> None:
    """Write times and memory of a contender into its record."""
    benchmark.group = record.group
    record.tuned = mode() != "off" and present("*.json")
    if direction == BOTH and solver.plain is None:
        arguments = contest.draw(contest.batch, 0, form.device)
        record.saved = bytes_saved_for_backward(lambda: solver(arguments), solver.module)
        del arguments
    sets = passes(contest, solver, direction, form.device)
    run, on_gpu = cycled(sets), form.device.type == "cuda"
    rounds = rounds_of(run, form)
    seconds: list[float] = []
    if on_gpu:
        if solver.left is None:  # what a graph allocates is its own from the capture on
            record.memory = peak_memory(sets[0])
        seconds, record.no_graph = replays(sets, solver, form)
    if seconds:
        record.call = quartiles(timed(run, rounds))
        CLOCK.hand_over(benchmark, seconds)
    elif contest.baseline is not None and not on_gpu:
        in_turn = cycled(passes(contest.baseline, contest.baseline.contenders["reference"](), direction, form.device))
        in_turn()
        others: list[float] = []
        benchmark.pedantic(run, setup=lambda: others.extend(timed(in_turn, 1)), rounds=rounds)
        record.baseline = statistics.median(others)
    else:
        benchmark.pedantic(run, rounds=rounds)
    record.stats = benchmark.stats.as_dict(include_data=False)["stats"]


def replays(sets: list[Pass], solver: Solver, form: Form) -> tuple[list[float], str]:
    """Seconds of graph replays, or why there are none: a call's time stands for them."""
    if solver.no_graph:
        return [], solver.no_graph
    try:
        return replayed(sets, form), ""
    except Exception as failure:
        return [], f"capture: {' '.join(str(failure).split())[:300]}"


def why(failure: Exception, ours: bool) -> tuple[str, str]:
    """Status and reason of an exception."""
    reason = " ".join(str(failure).split())[:500] or type(failure).__name__
    # Memory that PyTorch or a library asked for in vain, on a device or on the host.
    if isinstance(failure, torch.OutOfMemoryError) or any(
        words in reason for words in ("out of memory", "allocate memory", "ALLOC_FAILED")
    ):
        return records.OUT_OF_MEMORY, reason
    if isinstance(failure, MissingError | ImportError) or REFUSAL in reason:
        return records.MISSING, reason.split(REFUSAL)[-1]
    # What other people's code refuses, however it says so, is missing; ours must not fail.
    return records.FAILED if ours else records.MISSING, f"{type(failure).__name__}: {reason}"


def usable(device: torch.device) -> bool:
    """Whether the device still answers; after an illegal access it does not, for the rest of the process."""
    with contextlib.suppress(RuntimeError):
        if device.type == "cuda":
            torch.cuda.synchronize()
        return True
    return False
