"""Every suite: each contender is checked on the problem that it is timed on, and then timed."""

import contextlib
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import records
from benchmarks.contest import FORMS, MissingError
from benchmarks.records import Journal
from benchmarks.suites import SUITES, Case, cases
from benchmarks.timing import CLOCK
from crossmae_kernels.runtime.dispatch import REFUSAL

# The exit code where the device no longer works in this process; it may in a new one.
START_ANEW = 9
PARENT = os.getppid()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases that are asked for and have no record yet."""
    option = metafunc.config.option
    form = FORMS[option.form]
    there = records.begin(Path(option.record), form).records if option.record else {}
    chosen = [case for suite in option.suite or SUITES for case in cases(suite, form)]
    todo = {case.record.key: case for case in chosen}
    todo = {key: case for key, case in todo.items() if key not in there or there[key].status == records.NOT_REACHED}
    metafunc.parametrize("case", [pytest.param(case, id=", ".join(key)) for key, case in todo.items()])


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.filterwarnings("default")  # a contender that warns still competes
def test_suite(request: pytest.FixtureRequest, case: Case) -> None:
    """Check and time one contender on one problem in one direction, or one comparison of decoders."""
    option, record = request.config.option, case.record
    if time.time() > option.until or os.getppid() != PARENT:
        pytest.skip(records.NOT_REACHED)
    journal = Journal(Path(option.record) if option.record else None)
    record.status, record.reason = records.FAILED, records.STARTED
    journal.write(records=[record])
    attempt(case, lambda: request.getfixturevalue("benchmark"))
    journal.write(records=[record])
    # The failure is released by now, and with it what it held on the device.
    gc.collect()
    if not usable(FORMS[option.form].device):
        pytest.exit(f"{record.key}: the device does not answer any more", START_ANEW)
    if record.status in (records.MISSING, records.OUT_OF_MEMORY):
        pytest.skip(record.reason)
    if record.status != records.MEASURED:
        pytest.fail(f"{record.status}: {record.reason}", pytrace=False)


def attempt(case: Case, benchmark: Callable[[], Any]) -> None:
    """Check and measure; whatever goes wrong is written into the record."""
    record = case.record
    try:
        case.make(record, benchmark)
        record.status, record.reason = records.MEASURED, ""
    except Exception as failure:
        record.status, record.reason = why(failure, case.ours)


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
    if "wrong: " in reason:  # of a check, maybe of one decoder among several
        return records.WRONG, reason.replace("wrong: ", "")
    # What other people's code refuses, however it says so, is missing; ours must not fail.
    return records.FAILED if ours else records.MISSING, f"{type(failure).__name__}: {reason}"


def usable(device: torch.device) -> bool:
    """Whether the device still answers; after an illegal access it does not, for the rest of the process."""
    with contextlib.suppress(RuntimeError):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return True
    return False
