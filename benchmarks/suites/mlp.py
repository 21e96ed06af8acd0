"""The MLP of a decoder block, residual included."""

from functools import partial
from typing import Any

from torch import Tensor

import crossmae_kernels as ck
from benchmarks.problem import Arguments, Form, Problem, Random, Solver, Work
from benchmarks.suites.ops import op_problem
from benchmarks.suites.shapes import EPS, model_name, shape_of
from crossmae_kernels.runtime.dispatch import form_of

FORMS = ("single", "tiled", "vendor")


def problems(form: Form) -> list[Problem]:
    """One for each model and batch."""
    return [_mlp(form, size, batch) for size in form.sizes for batch in form.batches]


def _mlp(form: Form, size: str, batch: int) -> Problem:
    config, _, queries = shape_of(form, size)
    width = config.decoder_width
    hidden = int(width * config.mlp_ratio)

    def arguments(batch: int, random: Random) -> Arguments:
        draw = partial(random.normal, dtype=form.dtype)
        return {
            "x": draw(batch, queries, width),
            "norm_weight": draw(width),
            "norm_bias": draw(width),
            "fc1_weight": draw(hidden, width, scale=width**-0.5),
            "fc1_bias": draw(hidden),
            "fc2_weight": draw(width, hidden, scale=hidden**-0.5),
            "fc2_bias": draw(width),
        }

    def saving(**arguments: Any) -> Tensor:
        return ck.mlp(**arguments, eps=EPS, hidden="save")

    def in_form(name: str, **arguments: Any) -> Tensor:
        with form_of("mlp", name):
            return ck.mlp(**arguments, eps=EPS)

    rows = batch * queries
    stream, weights = rows * width * form.dtype.itemsize, 2 * width * hidden * form.dtype.itemsize
    flops = 4.0 * rows * width * hidden
    return op_problem(
        "mlp",
        form,
        {"model": model_name(size), "problem": f"{queries} x {width} x {hidden}"},
        batch,
        arguments,
        lambda **arguments: ck.mlp(**arguments, eps=EPS),
        forward=Work(2 * stream + weights, flops),
        backward=Work(3 * stream + 2 * weights, 2 * flops),
        variants={
            "fused, hidden saved": lambda: Solver(saving, "triton"),
            **{f"fused, {name}": lambda name=name: Solver(partial(in_form, name), "triton") for name in FORMS},  # type: ignore[misc]
        },
    )
