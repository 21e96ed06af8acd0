"""A whole pretraining step: encoder, decoder, loss, both backward, AdamW; and the largest batch that memory holds."""

from benchmarks.problem import LARGEST, STEP, Form, Problem
from benchmarks.suites.models import model_problem
from benchmarks.suites.shapes import model_sizes


def problems(form: Form) -> list[Problem]:
    """CrossMAE and MAE; the search for the largest batch begins at the first."""
    first, *more = {"tiny": (2,), "small": (2,), "short": (256,), "full": (256, 512, 1024, 2048)}[form.name]
    return [
        model_problem("step", form, size, batch, (STEP, LARGEST) if batch == first else (STEP,), family)
        for size in model_sizes(form)
        for batch in (first, *more)
        for family in ("crossmae", "mae")
    ]
