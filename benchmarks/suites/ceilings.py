"""What the machine can do at most: copy, and multiply matrices. Both are large enough to fill it."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.contest import FORWARD, Contest, Form, Solver, Work
from crossmae_kernels.testing import Draw, Problem


def ceilings(form: Form) -> list[Contest]:
    """A copy, and a product in the form's dtype; of what a suite computes everything is one or the other."""
    rows, width = (8, 64) if form.name == "tiny" else (1024, 1024) if form.device.type == "cpu" else (8192, 8192)
    copied, size = 16 * width, form.dtype.itemsize

    def vectors(draw: Draw, batch: int) -> Problem:
        return Problem("copy", "", {"x": draw.normal(batch, copied)})

    def matrices(draw: Draw, batch: int) -> Problem:
        weight = draw.normal(width, width, scale=width**-0.5)
        return Problem("product", "", {"x": draw.normal(batch, width), "weight": weight})

    def contest(about: str, pose: Callable[[Draw, int], Problem], call: Callable[..., Tensor], work: Work) -> Contest:
        return Contest(
            suite="ceilings",
            about={"problem": about},
            batch=rows,
            dtype=form.dtype,
            pose=pose,
            contenders={"reference": lambda: Solver(call)},
            work={FORWARD: work},
        )

    return [
        contest("copy", vectors, lambda x: x.clone(), Work(2 * rows * copied * size, 0)),
        contest(
            "product",
            matrices,
            lambda x, weight: x @ weight,
            Work((2 * rows * width + width**2) * size, 2.0 * rows * width**2),
        ),
    ]
