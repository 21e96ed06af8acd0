"""Everything that is measured, suite by suite, and how a single measurement is made."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks import decoders, ops
from benchmarks.checking import check
from benchmarks.contest import BOTH, FORWARD, Contest, Direction, Form
from benchmarks.records import Record
from benchmarks.timing import CLOCK, cycled, kernel_times, passes, replayed, rounds_of, timed
from crossmae.benchmark.ceilings import ceilings
from crossmae.benchmark.comparison import compare
from crossmae.benchmark.posing import Inputs
from crossmae.benchmark.setting import entrants
from crossmae.measure import peak_memory
from crossmae_kernels.runtime.records import present
from crossmae_kernels.runtime.tuning import mode, tuning_mode

# The most important first, but for the ceilings, beside which the others stand.
SUITES = ("ceilings", "decode", "kernels", "mixing", "attention", "mlp", "step", "projection", "patches", "launch")


@dataclass(frozen=True)
class Case:
    """One measurement: its record before it is made, and how to make it."""

    record: Record
    make: Callable[[Record, Callable[[], Any]], None]
    """Fills in a record, with pytest-benchmark's fixture if it asks for it, or raises."""
    ours: bool
    """Whether this package answers for a failure."""


def cases(suite: str, form: Form) -> list[Case]:
    """Everything that a suite measures, the most important first."""
    if suite == "ceilings":
        dtype = str(form.dtype).removeprefix("torch.")
        record = Record(suite, "copy and product", "reference", FORWARD, dtype=dtype)
        return [Case(record, partial(_ceilings, form), ours=True)]
    if suite == "kernels":
        return [_of_kernels(suite, asked) for asked in decoders.by_kernels(form)]
    if suite in decoders.SUITES:
        return [_of_decoders(suite, asked) for asked in decoders.asked(suite, form)]
    found = [
        (contest, name, direction)
        for direction in (BOTH, FORWARD)
        for contest in ops.contests(suite, form)
        for name in contest.contenders
        if direction == BOTH or form.name == "full" or not _compiled(name)
    ]
    # Forward passes alone come last: goals are set for both. Within that, what is compiled, since it takes long.
    found.sort(key=lambda case: (case[2] == FORWARD, _compiled(case[1]) or case[1] == "FlexAttention"))
    return [_of_contest(form, *case) for case in found]


def _compiled(name: str) -> bool:
    return name.endswith(("compiled", "max-autotune"))


def _ceilings(form: Form, record: Record, benchmark: Callable[[], Any]) -> None:
    record.found = asdict(ceilings(form.device, form.dtype, 64 if form.name == "tiny" else None))


def _of_decoders(suite: str, asked: decoders.Asked) -> Case:
    setting = asked.setting

    def make(record: Record, benchmark: Callable[[], Any]) -> None:
        comparison = compare(setting, asked.model)
        record.found = comparison.as_dict()
        failures = dict.fromkeys(row.failure for row in comparison.rows if row.failure)
        if failures:
            raise RuntimeError("; ".join(failures))

    record = Record(suite, asked.problem, asked.contender, BOTH, dtype=str(setting.dtype).removeprefix("torch."))
    return Case(record, make, ours=asked.contender.startswith(("kernels", "reference")))


def _of_kernels(suite: str, asked: decoders.Asked) -> Case:
    """A decoder's pass by our kernels, in the forms and tiles of the rules, as they are predicted."""

    def make(record: Record, benchmark: Callable[[], Any]) -> None:
        *_, crossmae = entrants(asked.setting)
        posed = Inputs(asked.setting).posed(crossmae)
        with tuning_mode("off"):
            record.found = kernel_times(partial(posed.gradients, posed.by("kernels")))

    record = Record(suite, asked.problem, asked.contender, BOTH, dtype=str(asked.setting.dtype).removeprefix("torch."))
    return Case(record, make, ours=True)


def _of_contest(form: Form, contest: Contest, name: str, direction: Direction) -> Case:
    work = contest.work[direction]
    record = Record(
        contest.suite,
        contest.problem,
        name,
        direction,
        dtype=str(contest.dtype).removeprefix("torch."),
        bytes=work.bytes,
        flops=work.flops,
    )
    return Case(record, partial(_contend, form, contest, name, direction), contest.ours(name))


def _contend(
    form: Form, contest: Contest, name: str, direction: Direction, record: Record, benchmark: Callable[[], Any]
) -> None:
    """Check a contender, then time it by pytest-benchmark: its calls or, on a GPU, the replays of a graph."""
    call = contest.contenders[name]()
    record.check = check(contest, name, call, form.device)
    record.tuned = mode() != "off" and present("*.json")
    sets = passes(contest, call, direction, form.device)
    run, fixture = cycled(sets), benchmark()
    fixture.group = f"{record.suite}: {record.problem}, {direction}"
    rounds = rounds_of(run, form)
    seconds: list[float] = []
    if form.device.type == "cuda":
        record.memory, record.no_graph = peak_memory(sets[0]), contest.no_graph.get(name, "")
        if not record.no_graph:
            try:
                seconds = replayed(sets, form)
            except Exception as failure:  # a call's time stands for it, with the reason
                record.no_graph = f"capture: {' '.join(str(failure).split())[:300]}"
    if seconds:
        record.call = median(timed(run, rounds))
        CLOCK.hand_over(fixture, seconds)
    else:
        fixture.pedantic(run, rounds=rounds)
    record.stats = fixture.stats.as_dict(include_data=False)["stats"]
    fixture.extra_info |= {name: value for name, value in vars(record).items() if name != "stats"}
