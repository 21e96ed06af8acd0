"""A whole pretraining step: encoder, decoder, loss, both backward, AdamW."""

from benchmarks.problem import Form, Problem
from benchmarks.suites.models import step_problem


def problems(form: Form) -> list[Problem]:
    """CrossMAE and MAE; in the full form in batches that end where memory does."""
    batches = {"tiny": (2,), "small": (2,), "short": (256,), "full": (256, 512, 1024, 2048, 4096)}[form.name]
    sizes = ("small_patch16",) if form.name == "small" else form.sizes
    return [
        step_problem(form, size, batch, family, plain=family == "crossmae")
        for size in sizes
        for batch in batches
        for family in ("crossmae", "mae")
    ]
