"""The linear layers around attention: keys and values of all blocks, norm and linear, linear and residual."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

import crossmae_kernels as ck
from benchmarks.problem import Arguments, Form, Problem, Random, Solver, Work, compiled
from benchmarks.release import release_projections
from benchmarks.suites.ops import op_problem
from benchmarks.suites.shapes import EPS, model_name, shape_of


def problems(form: Form) -> list[Problem]:
    """Keys and values, query projection, output projection and head of a decoder, for each model and batch."""
    found = []
    for size in form.sizes:
        config, _, queries = shape_of(form, size)
        width = config.decoder_width
        for batch in form.batches:
            found += [
                _keys_and_values(form, size, batch),
                _norm_linear(form, size, batch, "query", queries, width, width),
                _linear_residual(form, size, batch, queries, width),
                _norm_linear(form, size, batch, "head", queries, width, config.patch_values),
            ]
    return found


def _keys_and_values(form: Form, size: str, batch: int) -> Problem:
    config, tokens, _ = shape_of(form, size)
    maps, blocks = len(config.feature_maps or ()), config.decoder_depth
    inner, outer = config.encoder_width, 2 * config.decoder_width

    def arguments(batch: int, random: Random) -> Arguments:
        drawn = {f"map_{index}": random.normal(batch, tokens, inner, dtype=form.dtype) for index in range(maps)}
        return drawn | {
            "mixing_weight": random.normal(blocks, maps, dtype=form.dtype, scale=maps**-0.5),
            "norm_weight": random.normal(blocks, inner, dtype=form.dtype),
            "norm_bias": random.normal(blocks, inner, dtype=form.dtype),
            "weight": random.normal(blocks, outer, inner, dtype=form.dtype, scale=inner**-0.5),
            "bias": random.normal(blocks, outer, dtype=form.dtype),
        }

    def by(project: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def call(
            mixing_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, **maps: Tensor
        ) -> tuple[Tensor, ...]:
            per_block = (norm_weight, norm_bias, weight.unbind(), bias.unbind())
            return project(list(maps.values()), mixing_weight, *per_block, EPS)

        return call

    def release() -> Solver:
        return Solver(by(release_projections))

    rows = batch * tokens
    read = (rows * maps * inner + blocks * outer * inner) * form.dtype.itemsize
    written = rows * blocks * outer * form.dtype.itemsize
    flops = 2.0 * rows * blocks * inner * (outer + maps)
    return op_problem(
        "projection",
        form,
        {"model": model_name(size), "problem": f"keys and values, {maps} maps to {blocks} of {outer}"},
        batch,
        arguments,
        by(ck.project_feature_maps),
        forward=Work(read + written, flops),
        # Maps, weights and the gradient of the results are read, the gradients of maps and weights written.
        backward=Work(2 * read + written, 2 * flops),
        others={"release": release, **compiled(form, "release", release)},
    )


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
