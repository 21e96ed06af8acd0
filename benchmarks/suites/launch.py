"""Few images: what a call costs beside its arithmetic, eager, compiled and as a graph."""

from benchmarks.problem import Form, Problem
from benchmarks.suites.models import decode_problem


def problems(form: Form) -> list[Problem]:
    """The decoder at small batches."""
    batches = {"tiny": (1,), "small": (1,), "short": (1, 8), "full": (1, 2, 4, 8)}[form.name]
    return [decode_problem("launch", form, form.sizes[0], batch) for batch in batches]
