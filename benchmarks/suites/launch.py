"""Few images: what a call costs beside its arithmetic, eager, compiled and as a graph."""

from benchmarks.problem import BOTH, Form, Problem
from benchmarks.suites.models import decode_problem, model_problem
from benchmarks.suites.shapes import model_sizes


def problems(form: Form) -> list[Problem]:
    """The decoder and the whole model at small batches."""
    batches = {"tiny": (1,), "small": (1,), "short": (1, 8), "full": (1, 2, 4, 8)}[form.name]
    return [
        problem
        for batch in batches
        for problem in (
            decode_problem("launch", form, form.sizes[0], batch),
            model_problem("launch", form, model_sizes(form)[0], batch, (BOTH,)),
        )
    ]
