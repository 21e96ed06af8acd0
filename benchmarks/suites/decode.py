"""The decoder of CrossMAE against the formulation in common use and against MAE's decoder."""

from benchmarks.problem import Form, Problem
from benchmarks.suites.models import decode_problem


def problems(form: Form) -> list[Problem]:
    """The comparison with MAE first; then other prediction ratios, depths, and in the full form sizes."""
    (size, *more_sizes), (batch, *_) = form.sizes, form.batches
    found = [decode_problem("decode", form, size, batch, plain=True)]
    found += [decode_problem("decode", form, size, batch, "mae", 8, 0.75)]
    if form.name == "tiny":
        return found
    found += [decode_problem("decode", form, size, batch, prediction_ratio=ratio) for ratio in (0.5, 0.75)]
    found += [decode_problem("decode", form, size, batch, blocks=blocks) for blocks in (8, 4, 1)]
    if form.full:
        for other in more_sizes:
            found.append(decode_problem("decode", form, other, batch, plain=True))
            found.append(decode_problem("decode", form, other, batch, "mae", 8, 0.75))
        for other_batch in (64, 256, 512, 2048):
            found.append(decode_problem("decode", form, size, other_batch, plain=True))
            found.append(decode_problem("decode", form, size, other_batch, "mae", 8, 0.75))
        found.append(decode_problem("decode", form, size, 256, image_size=448, plain=True))
        found.append(decode_problem("decode", form, size, 256, "mae", 8, 0.75, image_size=448))
    return found
