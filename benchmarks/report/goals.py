"""What the kernels and the decoder are to reach on a GPU, forward and backward, and whether a run shows it."""

from collections.abc import Iterator

from benchmarks.contest import BOTH
from benchmarks.records import Record, Run

OURS = "fused"
ROOFLINE, MEMORY = "share of the roofline", "peak memory over the release's"
SDPA = tuple(f"sdpa {backend}" for backend in ("math", "efficient", "flash", "cudnn"))
MAE = "MAE's "
DECODER = "CrossMAE, ViT-B/16, pixels 224, blocks 12, predicts 0.25, batch 1024"
MAES_DECODER = "MAE, ViT-B/16, pixels 224, blocks 8, predicts 0.75, batch 1024"

# Suite; how the problem's name begins; a share, or whom to be faster than (of several, the fastest); the limit.
GOALS: tuple[tuple[str, str, str | tuple[str, ...], float], ...] = (
    ("attention", "ViT-B/16, cross_attention, 49 x 50", SDPA, 2),
    ("attention", "ViT-B/16, cross_attention, 49 x 50", ROOFLINE, 0.70),
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


def goals(run: Run) -> Iterator[tuple[str, str, str, float | None, str]]:
    """Problem, what is compared, limit, what was measured and the verdict, of each goal on each of its problems."""
    found = {key[:3]: record for key, record in run.records.items() if key[3] == BOTH}
    for suite, begin, what, limit in GOALS:
        problems = dict.fromkeys(p for s, p, _ in found if s == suite and p.startswith(begin))
        for problem in problems or (begin,):
            ours, at_most = found.get((suite, problem, OURS)), what == MEMORY
            if isinstance(what, str):
                title, value = what, _share(run, ours, what)
            else:
                title = f"speed-up over {what[0] if len(what) == 1 else 'the fastest SDPA backend'}"
                keys = [(suite, MAES_DECODER if n.startswith(MAE) else problem, n.removeprefix(MAE)) for n in what]
                ratios = [ratio for key in keys if ours and (ratio := ours.times_faster(found.get(key))) is not None]
                value = min(ratios, default=None)
            verdict = "not measured"
            if value is not None:
                verdict = "reached" if (value <= limit if at_most else value >= limit) else "missed"
            yield f"{suite}: {problem}", title, f"{'at most' if at_most else 'at least'} {limit:g}", value, verdict


def _share(run: Run, ours: Record | None, what: str) -> float | None:
    if ours is None:
        return None
    if what == ROOFLINE:
        return run.roofline(ours)
    release = run.records.get((ours.suite, ours.problem, "release", BOTH))
    return ours.memory / release.memory if release and ours.memory and release.memory else None
