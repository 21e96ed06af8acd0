"""The linear layers around attention, with the norm in front or the residual behind."""

from collections.abc import Callable
from functools import partial

import crossmae_kernels as ck
from benchmarks.problem import Arguments, Form, Problem, Random, Work
from benchmarks.suites.ops import op_problem
from benchmarks.suites.shapes import EPS, model_name, shape_of


def problems(form: Form) -> list[Problem]:
    """Query projection, output projection and head of a decoder, for each model and batch."""
    found = []
    for size in form.sizes:
        config, _, queries = shape_of(form, size)
        width = config.decoder_width
        for batch in form.batches:
            found += [
                _norm_linear(form, size, batch, "query", queries, width, width),
                _linear_residual(form, size, batch, queries, width),
                _norm_linear(form, size, batch, "head", queries, width, config.patch_values),
            ]
    return found


def _norm_linear(form: Form, size: str, batch: int, name: str, queries: int, inner: int, outer: int) -> Problem:
    def arguments(batch: int, random: Random) -> Arguments:
        norm = {
            "norm_weight": random.normal(inner, dtype=form.dtype),
            "norm_bias": random.normal(inner, dtype=form.dtype),
        }
        return _linear(random, form, batch, queries, inner, outer) | norm

    forward, backward = _work(form, batch * queries, inner, outer, residual=False)
    about = {"model": model_name(size), "problem": f"norm and {name}, {queries} x {inner} to {outer}"}
    call: Callable[..., object] = partial(ck.norm_linear, eps=EPS)
    return op_problem("projection", form, about, batch, arguments, call, forward, backward)


def _linear_residual(form: Form, size: str, batch: int, queries: int, width: int) -> Problem:
    def arguments(batch: int, random: Random) -> Arguments:
        residual = {"residual": random.normal(batch, queries, width, dtype=form.dtype)}
        return _linear(random, form, batch, queries, width, width) | residual

    forward, backward = _work(form, batch * queries, width, width, residual=True)
    about = {"model": model_name(size), "problem": f"output and residual, {queries} x {width} to {width}"}
    return op_problem("projection", form, about, batch, arguments, ck.linear_residual, forward, backward)


def _linear(random: Random, form: Form, batch: int, queries: int, inner: int, outer: int) -> Arguments:
    return {
        "x": random.normal(batch, queries, inner, dtype=form.dtype),
        "weight": random.normal(outer, inner, dtype=form.dtype, scale=inner**-0.5),
        "bias": random.normal(outer, dtype=form.dtype),
    }


def _work(form: Form, rows: int, inner: int, outer: int, residual: bool) -> tuple[Work, Work]:
    """Forward and backward; the residual's gradient is the output's own and need not move."""
    read, written = rows * inner * form.dtype.itemsize, rows * outer * form.dtype.itemsize
    weight, flops = inner * outer * form.dtype.itemsize, 2.0 * rows * inner * outer
    return (
        Work(read + weight + written * (2 if residual else 1), flops),
        Work(2 * read + written + 2 * weight, 2 * flops),
    )
