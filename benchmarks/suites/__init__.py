"""What is measured, suite by suite: each has a function from a form to its contests."""

import importlib

from benchmarks.contest import BOTH, FORWARD, STEP, Contest, Direction, Form
from benchmarks.records import Record

# The most important first, but for the ceilings, beside which the others stand; by the module that holds them.
SUITES = {
    "ceilings": "ceilings",
    "decode": "models",
    "mixing": "ops",
    "attention": "attention",
    "mlp": "ops",
    "step": "models",
    "projection": "ops",
    "patches": "ops",
    "launch": "models",
}

Case = tuple[Contest, str, Direction]


def contests(suite: str, form: Form) -> list[Contest]:
    """Those of a suite."""
    module = importlib.import_module(f"benchmarks.suites.{SUITES[suite]}")
    found: list[Contest] = getattr(module, suite)(form)
    return found


def cases(suite: str, form: Form) -> list[Case]:
    """Everything that a suite measures, the most important first.

    Forward passes alone come last: goals are set for both. Within that, what is compiled comes last, since it takes
    long.
    """
    found = contests(suite, form)
    all_cases: list[Case] = [
        (contest, name, direction)
        for direction in (STEP, BOTH, FORWARD)
        for contest in found
        if direction in contest.work
        for name in contest.contenders
    ]
    slow = ("compiled", "FlexAttention")
    return sorted(all_cases, key=lambda case: (case[2] == FORWARD, any(word in case[1] for word in slow)))


def planned(case: Case) -> Record:
    """The record of a measurement that has not been made."""
    contest, name, direction = case
    work = contest.work[direction]
    return Record(
        contest.suite,
        contest.problem,
        name,
        direction,
        about=contest.about | {"batch": contest.batch},
        dtype=str(contest.dtype).removeprefix("torch."),
        bytes=work.bytes,
        flops=work.flops,
    )
