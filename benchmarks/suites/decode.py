"""The decoder of CrossMAE against the release's formulation and against MAE's decoder."""

from functools import partial

from benchmarks.problem import Form, Problem
from benchmarks.suites.models import decode_problem


def problems(form: Form) -> list[Problem]:
    """The comparison with MAE first; then prediction ratios and depths, and in the full form sizes, batches, pixels."""
    (size, *more_sizes), (batch, *_) = form.sizes, form.batches
    decode = partial(decode_problem, "decode", form)
    found = _both(form, size, batch)
    if form.name == "tiny":
        return found
    found += [decode(size, batch, prediction_ratio=ratio) for ratio in (0.5, 0.75)]
    found += [decode(size, batch, blocks=blocks) for blocks in (8, 4, 1)]
    if form.full:
        for other in more_sizes:
            found += _both(form, other, batch)
        for other_batch in (64, 128, 256, 512, 2048):
            found += _both(form, size, other_batch)
        found += _both(form, size, 256, image_size=448)
        found += [decode(size, 256, prediction_ratio=ratio, image_size=448) for ratio in (0.5, 0.75)]
    return found


def _both(form: Form, size: str, batch: int, image_size: int | None = None) -> list[Problem]:
    """CrossMAE, the release's formulation of it included, and MAE."""
    decode = partial(decode_problem, "decode", form, size, batch, image_size=image_size)
    return [decode(release=True), decode("mae", 8, 0.75)]
