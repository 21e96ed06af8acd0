"""Mixing of encoder feature maps and its norm, without the affine, which the next linear layer takes in.

The release's formulation stacks the maps on the last axis and norms strided slices of their mix.
"""

from torch import Tensor

import crossmae_kernels as ck
from benchmarks.problem import Arguments, Form, Problem, Random, Solver, Work, compiled
from benchmarks.release import release_mixing
from benchmarks.suites.ops import op_problem
from benchmarks.suites.shapes import EPS, model_name, shape_of


def problems(form: Form) -> list[Problem]:
    """One for each model and batch."""
    return [_mixing(form, size, batch) for size in form.sizes for batch in form.batches]


def _mixing(form: Form, size: str, batch: int) -> Problem:
    config, tokens, _ = shape_of(form, size)
    maps, mixes, width = len(config.feature_maps or ()), config.decoder_depth, config.encoder_width

    def arguments(batch: int, random: Random) -> Arguments:
        drawn = {f"map_{index}": random.normal(batch, tokens, width, dtype=form.dtype) for index in range(maps)}
        return drawn | {"weight": random.normal(mixes, maps, dtype=form.dtype, scale=maps**-0.5)}

    def mix(weight: Tensor, **by_name: Tensor) -> Tensor:
        return ck.mix_feature_maps(list(by_name.values()), weight, eps=EPS)

    def release() -> Solver:
        return Solver(lambda weight, **by_name: release_mixing(list(by_name.values()), weight, EPS))

    one = batch * tokens * width * form.dtype.itemsize
    flops = 2.0 * maps * mixes * batch * tokens * width
    return op_problem(
        "mixing",
        form,
        {"model": model_name(size), "problem": f"{maps} maps to {mixes}"},
        batch,
        arguments,
        mix,
        forward=Work((maps + mixes) * one, flops),
        # The maps and the gradient of the mixes are read, the gradient of the maps is written.
        backward=Work((2 * maps + mixes) * one, 2 * flops),
        others={"release": release, **compiled(form, "release", release)},
    )
