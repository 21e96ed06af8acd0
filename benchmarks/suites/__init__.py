"""What is measured, suite by suite: each has a function from a form to its problems."""

import importlib

from benchmarks.problem import BOTH, FORWARD, STEP, Direction, Form, Problem
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

Case = tuple[Problem, str, Direction]


def problems(suite: str, form: Form) -> list[Problem]:
    """The problems of a suite."""
    module = importlib.import_module(f"benchmarks.suites.{SUITES[suite]}")
    found: list[Problem] = getattr(module, suite)(form)
    return found


def cases(suite: str, form: Form) -> list[Case]:
    """Everything that a suite measures, the most important first.

    Forward passes alone come last: goals are set for both. Within that, what is compiled comes last, since it takes
    long.
    """
    found = problems(suite, form)
    all_cases: list[Case] = [
        (problem, name, direction)
        for direction in (STEP, BOTH, FORWARD)
        for problem in found
        if direction in problem.work
        for name in problem.contenders
    ]
    slow = ("compiled", "FlexAttention")
    return sorted(all_cases, key=lambda case: (case[2] == FORWARD, any(word in case[1] for word in slow)))


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
        bytes=work.bytes,
        flops=work.flops,
    )
