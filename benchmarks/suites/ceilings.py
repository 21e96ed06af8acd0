"""What the machine can do at most: copy, and multiply matrices. Both are large enough to fill it."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.problem import FORWARD, Arguments, Form, Problem, Random, Solver, Work


def ceilings(form: Form) -> list[Problem]:
    """A copy, and a product in the form's dtype; of what a suite computes everything is one or the other."""
    rows, width = (8, 64) if form.name == "tiny" else (1024, 1024) if form.device.type == "cpu" else (8192, 8192)
    copied, size = 16 * width, form.dtype.itemsize

    def vectors(batch: int, random: Random) -> Arguments:
        return {"x": random.normal(batch, copied, dtype=form.dtype)}

    def matrices(batch: int, random: Random) -> Arguments:
        x = random.normal(batch, width, dtype=form.dtype)
        return {"x": x, "weight": random.normal(width, width, dtype=form.dtype, scale=width**-0.5)}

    def problem(
        about: str, draw: Callable[[int, Random], Arguments], call: Callable[..., Tensor], work: Work
    ) -> Problem:
        solver = Solver(call)
        return Problem(
            suite="ceilings",
            about={"problem": about},
            batch=rows,
            dtype=form.dtype,
            arguments=draw,
            contenders={"reference": lambda: solver},
            ours=frozenset({"reference"}),
            exact=lambda: solver,
            work={FORWARD: work},
        )

    return [
        problem("copy", vectors, lambda x: x.clone(), Work(2 * rows * copied * size, 0)),
        problem(
            "product",
            matrices,
            lambda x, weight: x @ weight,
            Work((2 * rows * width + width**2) * size, 2.0 * rows * width**2),
        ),
    ]
