"""Gathering visible patches, and the loss on predicted ones.

The release's formulation cuts the whole image into patches and then drops most of them.
"""

from functools import partial

from torch import Tensor

import crossmae_kernels as ck
from benchmarks.problem import Arguments, Form, Problem, Random, Solver, Work, compiled
from benchmarks.release import SYNCHRONIZES, release_gather, release_loss
from benchmarks.suites.ops import op_problem
from benchmarks.suites.shapes import model_name, shape_of


def problems(form: Form) -> list[Problem]:
    """Gather and loss for each model and batch."""
    return [build(form, size, batch) for size in form.sizes for batch in form.batches for build in (_gather, _loss)]


def _gather(form: Form, size: str, batch: int) -> Problem:
    config, tokens, _ = shape_of(form, size)
    visible, patch = tokens - 1, config.patch_size

    def arguments(batch: int, random: Random) -> Arguments:
        images = random.normal(batch, config.channels, *config.image_size, dtype=form.dtype)
        return {"images": images, "ids": random.ids(batch, visible, config.patches)}

    def release() -> Solver:
        return Solver(partial(release_gather, patch_size=patch))

    rows = batch * visible * config.patch_values * form.dtype.itemsize
    image = batch * config.patches * config.patch_values * form.dtype.itemsize
    return op_problem(
        "patches",
        form,
        {"model": model_name(size), "problem": f"gather {visible} of {config.patches}"},
        batch,
        arguments,
        partial(ck.gather_patches, patch_size=patch),
        forward=Work(2 * rows, 0),
        backward=Work(rows + image, 0),
        others={"release": release, **compiled(form, "release", release)},
    )


def _loss(form: Form, size: str, batch: int) -> Problem:
    config, _, predicted = shape_of(form, size)
    patch = config.patch_size

    def arguments(batch: int, random: Random) -> Arguments:
        return {
            "prediction": random.normal(batch, predicted, config.patch_values, dtype=form.dtype),
            "images": random.normal(batch, config.channels, *config.image_size, dtype=form.dtype),
            "ids": random.ids(batch, predicted, config.patches),
        }

    # One loss for each patch: a sum over everything would hide an error in any of them.
    def loss(prediction: Tensor, images: Tensor, ids: Tensor) -> Tensor:
        return ck.patch_loss(prediction, images, ids, patch, normalize=True, reduction="none")

    def release() -> Solver:
        return Solver(partial(release_loss, patch_size=patch), no_graph=SYNCHRONIZES)

    rows = batch * predicted * config.patch_values * form.dtype.itemsize
    return op_problem(
        "patches",
        form,
        {"model": model_name(size), "problem": f"loss on {predicted} of {config.patches}"},
        batch,
        arguments,
        loss,
        forward=Work(2 * rows, 0),
        backward=Work(rows, 0),
        others={"release": release, **compiled(form, "release", release)},
        constants=frozenset({"images"}),
    )
