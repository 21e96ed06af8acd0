"""What the kernels and the decoder are to reach on a GPU, forward and backward, and whether a run shows it.

A goal is set against the strongest that others offer: eager PyTorch, a compiler, a library or the release's
formulation, whichever the run finds to be best.
"""

from collections.abc import Iterator

from benchmarks.contest import BOTH
from benchmarks.records import Run

OURS = "fused"
ROOFLINE, SPEED, MEMORY = "share of the roofline", "speed-up over the strongest", "peak memory over the least"
MAES = "speed-up over MAE's strongest"
DECODER = "CrossMAE, ViT-B/16, pixels 224, blocks 12, predicts 0.25, batch 1024"
MAES_DECODER = "MAE, ViT-B/16, pixels 224, blocks 8, predicts 0.75, batch 1024"

# Suite; how the problem's name begins; what is compared; the limit.
GOALS = (
    ("attention", "ViT-B/16, cross_attention, 49 x 50", SPEED, 2),
    ("attention", "ViT-B/16, cross_attention, 49 x 50", ROOFLINE, 0.70),
    ("mixing", "ViT-B/16", SPEED, 2),
    ("mixing", "ViT-B/16", ROOFLINE, 0.75),
    ("patches", "ViT-B/16", ROOFLINE, 0.70),
    ("decode", DECODER, SPEED, 1.5),
    # Ours keeps 4.3 MiB per image, a compiler an estimated 9; 2 for the gradients of feature maps everybody needs.
    ("decode", DECODER, MEMORY, 0.6),
    ("decode", DECODER, ROOFLINE, 0.60),
    ("decode", DECODER, MAES, 3.7),
)


def goals(run: Run) -> Iterator[tuple[str, str, str, float | None, str]]:
    """Problem, what is compared with whom, limit, what was measured and the verdict, of each goal on its problems."""
    for suite, begin, what, limit in GOALS:
        problems = dict.fromkeys(p for s, p, *_ in run.records if s == suite and p.startswith(begin))
        for problem in problems or (begin,):
            value, who = _measured(run, suite, problem, what)
            verdict, at_most = "not measured", what == MEMORY
            if value is not None:
                verdict = "reached" if (value <= limit if at_most else value >= limit) else "missed"
            title = f"{what}, {who}" if who else what
            yield f"{suite}: {problem}", title, f"{'at most' if at_most else 'at least'} {limit:g}", value, verdict


def _measured(run: Run, suite: str, problem: str, what: str) -> tuple[float | None, str]:
    """What was measured and, where there is one, the contender that leaves us the least advantage."""
    ours = run.records.get((suite, problem, OURS, BOTH))
    if ours is None:
        return None, ""
    if what == ROOFLINE:
        return run.roofline(ours), ""
    theirs = suite, MAES_DECODER if what == MAES else problem
    found = []
    for (*where, name, direction), other in run.records.items():
        if (*where, direction) == (*theirs, BOTH) and not name.startswith(OURS):
            ratio = ours.times_faster(other)
            if what == MEMORY:
                ratio = ours.memory / other.memory if ours.memory and other.memory else None
            found += [(ratio, name)] if ratio is not None else []
    return (max if what == MEMORY else min)(found, default=(None, ""))
