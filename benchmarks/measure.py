"""Measure one suite into a folder's record: ``python -m benchmarks.measure FOLDER SUITE --form small``.

Every measurement is written as soon as it is there, and what is being measured stands in ``measuring.json``, so that
a process that dies leaves everything but the last one, and its name.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.ceilings import Ceilings, bound, measure_ceilings
from benchmarks.checking import Checks, WrongError
from benchmarks.largest_batch import largest_batch, out_of_memory
from benchmarks.problem import (
    BOTH,
    FORWARD,
    LARGEST,
    STEP,
    Direction,
    Form,
    MissingError,
    Problem,
    Solver,
    form_named,
    gradients,
    upstream_of,
)
from benchmarks.records import Record, Run
from benchmarks.suites import SUITES, problems
from benchmarks.timing import measure
from crossmae.files import replacing
from crossmae_kernels.runtime.dispatch import REFUSAL
from crossmae_kernels.runtime.tuning import cache_directory, enabled

MEASURING = "measuring.json"
# The device is in no state to go on; a fresh process may.
START_ANEW = 3

Case = tuple[Problem, str, Direction]

# Whose largest batch is searched: a compiler or a graph would begin anew with every batch that is tried.
SEARCHED = ("reference", "fused", "release")


def cases(suite: str, form: Form) -> list[Case]:
    """Everything that a suite measures, the most important first.

    Forward passes alone come last: goals are set for both. Before them come searches for the largest batch. Within
    that, what is compiled comes last, since it takes long.
    """
    found = problems(suite, form)
    all_cases: list[Case] = [
        (problem, name, direction)
        for direction in (STEP, BOTH, LARGEST, FORWARD)
        for problem in found
        if direction in problem.work
        for name in problem.contenders
        if direction != LARGEST or name in SEARCHED
    ]
    slow = ("compiled", "FlexAttention")
    return sorted(
        all_cases, key=lambda case: (case[2] == FORWARD, case[2] == LARGEST, any(word in case[1] for word in slow))
    )


def planned(case: Case) -> Record:
    """The record of a measurement that has not been made."""
    problem, name, direction = case
    work = problem.work[direction]
    return Record(
        problem.suite,
        problem.label,
        name,
        direction,
        about=problem.about | {"batch": problem.batch},
        dtype=str(problem.dtype).removeprefix("torch."),
        tuned=enabled() and any(cache_directory().glob("*.json")),
        bytes=work.bytes,
        flops=work.flops,
    )


def run_suite(folder: Path, suite: str, form: Form, until: float) -> int:
    """Measure what has no record yet, until the clock says so; the exit code."""
    todo = cases(suite, form)
    run = records.read(folder)
    run.put(planned(case) for case in todo if planned(case).key not in run.records)
    records.write(run, folder)
    parent, checks = os.getppid(), Checks(form.device)
    for case in todo:
        record = run.records[planned(case).key]
        if record.status != records.NOT_REACHED:
            continue
        if time.time() > until or os.getppid() != parent:
            break
        mark(folder, record)
        print(f"{suite}: {record.problem}: {record.contender}, {record.direction} ...", flush=True)
        record = attempt(case, form, run, checks)
        run.put([record])
        records.write(run, folder)
        (folder / MEASURING).unlink()
        print(f"    {outcome(record)}", flush=True)
        if not usable(form.device):
            return START_ANEW
    return 0


def mark(folder: Path, record: Record) -> None:
    """Say what is being measured."""
    with replacing(folder / MEASURING) as beside:
        beside.write_text(json.dumps(record.key), "utf-8")


def attempt(case: Case, form: Form, run: Run, checks: Checks) -> Record:
    """Check and measure; whatever goes wrong becomes the record."""
    problem, name, direction = case
    record = dataclasses.replace(planned(case), date=records.now())
    try:
        solver = problem.contenders[name]()
        record.check = dataclasses.asdict(checks.check(problem, name, solver))
        if direction == LARGEST:
            checks.forget()
            record.largest, too_large = largest_batch(problem, solver, form.device, form.most_images)
            record.reason = f"{too_large} do not fit" if too_large else "more were not tried"
        else:
            _time(record, case, solver, form, run.ceilings)
        record.status = records.MEASURED
    except WrongError as wrong:
        record.status, record.reason = records.WRONG, str(wrong)
    except Exception as failure:
        record.status, record.reason = _why(failure, name in problem.ours)
    gc.collect()
    if form.device.type == "cuda" and usable(form.device):
        torch.cuda.empty_cache()
    return record


def _time(record: Record, case: Case, solver: Solver, form: Form, ceilings: Ceilings) -> None:
    """Write times and memory of a contender into its record."""
    problem, _, direction = case
    found = measure(problem, solver, direction, form.device, form.seconds)
    record.memory, record.no_graph = found.memory, found.no_graph
    record.times = {"call": dataclasses.asdict(found.call)}
    if found.graph is not None:
        record.times["graph"] = dataclasses.asdict(found.graph)
    least = bound(problem.work[direction], record.dtype, ceilings)
    if least is not None and record.time is not None:
        record.roofline = least / record.time["median"]


def _why(failure: Exception, ours: bool) -> tuple[str, str]:
    """Status and reason of an exception."""
    reason = " ".join(str(failure).split())[:500] or type(failure).__name__
    if out_of_memory(failure):
        return records.OUT_OF_MEMORY, reason
    if isinstance(failure, MissingError | ImportError) or REFUSAL in reason:
        return records.MISSING, reason.split(REFUSAL)[-1]
    # What other people's code refuses, in whatever words, is missing; ours must not fail.
    return records.FAILED if ours else records.MISSING, f"{type(failure).__name__}: {reason}"


def usable(device: torch.device) -> bool:
    """Whether the device still answers; after an illegal access it does not, for the rest of the process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def outcome(record: Record) -> str:
    """A measurement in some words."""
    if record.status != records.MEASURED:
        return f"{record.status}: {record.reason}"
    if record.time is None:
        return f"{record.largest} images; {record.reason}"
    share = "" if record.roofline is None else f", {record.roofline:.0%} of the roofline"
    kind = "graph" if "graph" in record.times else "call"
    return f"{record.time['median'] * 1e3:.3f} ms ({kind}){share}"


def run_ceilings(folder: Path, form: Form) -> int:
    """Measure what the device can do."""
    with records.updating(folder) as run:
        run.ceilings = measure_ceilings(form.device, tiny=form.device.type == "cpu")
        print(run.ceilings)
    return 0


def run_tuning(form: Form) -> int:
    """Call every kernel on the shapes of the models, once; with tuning on, that tunes them."""
    for suite in SUITES:
        if suite in ("step", "launch"):
            continue
        for problem in problems(suite, form):
            print(f"{suite}: {problem.label}", flush=True)
            try:
                solver = problem.contenders["fused"]()
                arguments = problem.draw(problem.batch, 0, form.device)
                gradients(solver, arguments, upstream_of(solver, arguments, 1))
            except RuntimeError as failure:
                print(f"    {failure}", flush=True)
                if not usable(form.device):
                    return START_ANEW
    return 0


def main() -> int:
    """Measure a suite, the ceilings, or tune."""
    others: dict[str, Callable[[Path, Form], int]] = {
        "ceilings": run_ceilings,
        "tuning": lambda folder, form: run_tuning(form),
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where records.json lies")
    parser.add_argument("what", choices=(*SUITES, *others))
    parser.add_argument("--form", default="small", help="tiny, small, short or full")
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="begin nothing after this time, in s since 1970"
    )
    options = parser.parse_args()
    form = form_named(options.form)
    if options.what in others:
        return others[options.what](options.folder, form)
    return run_suite(options.folder, options.what, form, options.until)


if __name__ == "__main__":
    sys.exit(main())
