"""What is measured, suite by suite: each has a function from a form to its contests."""

from benchmarks.contest import BOTH, FORWARD, STEP, Contest, Direction, Form, with_compiled
from benchmarks.records import Record
from benchmarks.suites import models, ops

# The most important first, but for the ceilings, beside which the others stand.
SUITES = {
    "ceilings": ops.ceilings,
    "decode": models.decode,
    "mixing": ops.mixing,
    "attention": ops.attention,
    "mlp": ops.mlp,
    "step": models.step,
    "projection": ops.projection,
    "patches": ops.patches,
    "launch": models.launch,
}

Case = tuple[Contest, str, Direction]


def contests(suite: str, form: Form) -> list[Contest]:
    """What a suite poses, compiled contenders included."""
    return [with_compiled(form, contest) for contest in SUITES[suite](form)]


def cases(suite: str, form: Form) -> list[Case]:
    """Everything that a suite measures, the most important first.

    Forward passes alone come last: goals are set for both. Within that, what is compiled comes last, since it takes
    long, and in forms other than the full one is left out.
    """
    found = contests(suite, form)
    all_cases: list[Case] = [
        (contest, name, direction)
        for direction in (STEP, BOTH, FORWARD)
        for contest in found
        if direction in contest.work
        for name in contest.contenders
        if direction != FORWARD or form.name == "full" or "compiled" not in name
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
