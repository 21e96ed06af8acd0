"""What the kernels and the decoder are to reach on a GPU, forward and backward, and whether a run shows it."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.contest import BOTH
from benchmarks.records import Record, Run

OURS = "fused"
ROOFLINE, MEMORY = "share of the roofline", "peak memory over the release's"
SDPA = tuple(f"sdpa {backend}" for backend in ("math", "efficient", "flash", "cudnn"))
MAE = "MAE's, "
DECODER = "CrossMAE, ViT-B/16, pixels 224, blocks 12, predicts 0.25, batch 1024"

# Suite; how the problem's name begins; what is compared: a share, or with the fastest of contenders; the limit.
GOALS: tuple[tuple[str, str, str | tuple[str, ...], float], ...] = (
    ("attention", "ViT-B/16, 49 x 50", SDPA, 2),
    ("attention", "ViT-B/16, 49 x 50", ROOFLINE, 0.70),
    ("mixing", "ViT-B/16", ("release",), 5),
    ("mixing", "ViT-B/16", ("release, compiled",), 2),
    ("mixing", "ViT-B/16", ROOFLINE, 0.75),
    ("patches", "ViT-B/16", ROOFLINE, 0.70),
    ("decode", DECODER, ("release",), 2.5),
    ("decode", DECODER, ("release, compiled, max-autotune",), 1.5),
    ("decode", DECODER, MEMORY, 0.4),
    ("decode", DECODER, ROOFLINE, 0.60),
    ("decode", DECODER, (f"{MAE}reference, compiled",), 3.7),
)


@dataclass(frozen=True)
class Goal:
    """A number that is to be at least, or at most, another."""

    problem: str
    what: str
    limit: float
    value: float | None

    @property
    def at_most(self) -> bool:
        """Whether less is better."""
        return self.what == MEMORY

    @property
    def verdict(self) -> str:
        """``reached``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "reached" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"


def goals(run: Run) -> Iterator[Goal]:
    """Each goal on each problem that it is set for, with what was measured."""
    found = {(key[0], key[1], key[2]): record for key, record in run.records.items() if key[3] == BOTH}
    for suite, begin, what, limit in GOALS:
        problems = dict.fromkeys(p for s, p, _ in found if s == suite and p.startswith(begin))
        for problem in problems or (begin,):
            ours = found.get((suite, problem, OURS))
            if isinstance(what, str):
                yield Goal(f"{suite}: {problem}", what, limit, None if ours is None else _share(run, ours, what, found))
                continue
            rivals = [_rival(found, suite, problem, name) for name in what]
            ratios = [ratio for rival in rivals if ours and (ratio := ours.times_faster(rival)) is not None]
            title = "speed-up over " + (what[0] if len(what) == 1 else "the fastest SDPA backend")
            yield Goal(f"{suite}: {problem}", title, limit, min(ratios, default=None))


Found = dict[tuple[str, str, str], Record]


def _share(run: Run, ours: Record, what: str, found: Found) -> float | None:
    if what == ROOFLINE:
        return run.roofline(ours)
    release = found.get((ours.suite, ours.problem, "release"))
    return ours.memory / release.memory if release and ours.memory and release.memory else None


def _rival(found: Found, suite: str, problem: str, name: str) -> Record | None:
    """A contender on the same problem, or on that of MAE's decoder."""
    if name.startswith(MAE):
        problem = problem.replace("CrossMAE", "MAE").replace("blocks 12, predicts 0.25", "blocks 8, predicts 0.75")
    return found.get((suite, problem, name.removeprefix(MAE)))
