"""Single operations at the shapes of the models' decoders: the kernels, the reference, and it compiled.

Beside them stands the release's formulation where it differs. It stacks feature maps on the last axis and norms strided
slices of their mix; it cuts whole images into patches and then drops most of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

import crossmae_kernels as ck
from benchmarks.contest import BOTH, FORWARD, Contest, Form, Solver, Work, with_compiled
from benchmarks.release import SYNCHRONIZES, release_gather, release_loss, release_mixing, release_projections
from benchmarks.suites.shapes import EPS, model_name, shape_of
from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import Draw, problems
from crossmae_kernels.testing.problem import Problem

MLP_FORMS = ("single", *problems.FORMS)


def op_contest(
    suite: str,
    form: Form,
    about: dict[str, str],
    batch: int,
    pose: Callable[[Draw, int], Problem],
    call: Callable[..., Any],
    forward: Work,
    backward: Work,
    others: Mapping[str, Callable[[], Solver]] | None = None,
) -> Contest:
    """An operation of ``crossmae_kernels``, posed and called, against its reference and ``others``.

    ``forward`` and ``backward`` are the least work in a direction.
    """
    contenders = {"reference": lambda: Solver(call, "reference"), "fused": lambda: Solver(call, "triton")}
    return Contest(
        suite=suite,
        about=about,
        batch=batch,
        dtype=form.dtype,
        pose=pose,
        contenders=with_compiled(form, contenders | dict(others or {})),
        work={FORWARD: forward, BOTH: Work(forward.bytes + backward.bytes, forward.flops + backward.flops)},
    )


def mixing(form: Form) -> list[Contest]:
    """Mixing of feature maps and its norm, without the affine, which the next linear layer takes in."""
    return [_mixing(form, size, batch) for size in form.sizes for batch in form.batches]


def _mixing(form: Form, size: str, batch: int) -> Contest:
    config, tokens, _ = shape_of(form, size)
    maps, mixes, width = len(config.feature_maps or ()), config.decoder_depth, config.encoder_width

    def release(maps: list[Tensor], weight: Tensor, **affine: None) -> tuple[Tensor, ...]:
        return release_mixing(maps, weight, EPS)

    one = batch * tokens * width * form.dtype.itemsize
    flops = 2.0 * maps * mixes * batch * tokens * width
    return op_contest(
        "mixing",
        form,
        {"model": model_name(size), "problem": f"{maps} maps to {mixes}"},
        batch,
        lambda draw, batch: problems.mix_feature_maps(draw, (batch, tokens), maps, mixes, width),
        partial(ck.mix_feature_maps, eps=EPS),
        forward=Work((maps + mixes) * one, flops),
        # The maps and the gradient of the mixes are read, the gradient of the maps is written.
        backward=Work((2 * maps + mixes) * one, 2 * flops),
        others={"release": lambda: Solver(release)},
    )


def mlp(form: Form) -> list[Contest]:
    """The MLP of a decoder block, residual included."""
    return [_mlp(form, size, batch) for size in form.sizes for batch in form.batches]


def _mlp(form: Form, size: str, batch: int) -> Contest:
    config, _, queries = shape_of(form, size)
    width = config.decoder_width
    hidden = int(width * config.mlp_ratio)

    call = partial(ck.mlp, eps=EPS)

    def in_form(name: str, **arguments: Any) -> Tensor:
        with form_of("mlp", name):
            return call(**arguments)

    rows = batch * queries
    residual, weights = rows * width * form.dtype.itemsize, 2 * width * hidden * form.dtype.itemsize
    flops = 4.0 * rows * width * hidden
    return op_contest(
        "mlp",
        form,
        {"model": model_name(size), "problem": f"{queries} x {width} x {hidden}"},
        batch,
        lambda draw, batch: problems.mlp(draw, (batch, queries), width, hidden),
        call,
        forward=Work(2 * residual + weights, flops),
        backward=Work(3 * residual + 2 * weights, 2 * flops),
        others={
            "fused, hidden saved": lambda: Solver(partial(call, hidden="save"), "triton"),
            **{f"fused, {name}": partial(Solver, partial(in_form, name), "triton") for name in MLP_FORMS},
        },
    )


def projection(form: Form) -> list[Contest]:
    """The linear layers around attention: keys and values of all blocks, norm and query, output and residual, head."""
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


def _keys_and_values(form: Form, size: str, batch: int) -> Contest:
    config, tokens, _ = shape_of(form, size)
    maps, blocks = len(config.feature_maps or ()), config.decoder_depth
    inner, outer = config.encoder_width, 2 * config.decoder_width

    rows = batch * tokens
    read = (rows * maps * inner + blocks * outer * inner) * form.dtype.itemsize
    written = rows * blocks * outer * form.dtype.itemsize
    flops = 2.0 * rows * blocks * inner * (outer + maps)
    return op_contest(
        "projection",
        form,
        {"model": model_name(size), "problem": f"keys and values, {maps} maps to {blocks} of {outer}"},
        batch,
        lambda draw, batch: problems.project_feature_maps(draw, (batch, tokens), maps, blocks, inner, outer),
        partial(ck.project_feature_maps, eps=EPS),
        forward=Work(read + written, flops),
        # Maps, weights and the gradient of the results are read, the gradients of maps and weights written.
        backward=Work(2 * read + written, 2 * flops),
        others={"release": lambda: Solver(partial(release_projections, eps=EPS))},
    )


def _norm_linear(form: Form, size: str, batch: int, name: str, queries: int, inner: int, outer: int) -> Contest:
    return op_contest(
        "projection",
        form,
        {"model": model_name(size), "problem": f"norm and {name}, {queries} x {inner} to {outer}"},
        batch,
        lambda draw, batch: problems.norm_linear(draw, (batch, queries), inner, outer),
        partial(ck.norm_linear, eps=EPS),
        *_work_of_linear(form, batch * queries, inner, outer, residual=False),
    )


def _linear_residual(form: Form, size: str, batch: int, queries: int, width: int) -> Contest:
    return op_contest(
        "projection",
        form,
        {"model": model_name(size), "problem": f"output and residual, {queries} x {width} to {width}"},
        batch,
        lambda draw, batch: problems.linear_residual(draw, (batch, queries), width, width),
        ck.linear_residual,
        *_work_of_linear(form, batch * queries, width, width, residual=True),
    )


def _work_of_linear(form: Form, rows: int, inner: int, outer: int, residual: bool) -> tuple[Work, Work]:
    """Forward and backward; the residual's gradient is the output's own and need not move."""
    read, written = rows * inner * form.dtype.itemsize, rows * outer * form.dtype.itemsize
    weight, flops = inner * outer * form.dtype.itemsize, 2.0 * rows * inner * outer
    return (
        Work(read + weight + written * (2 if residual else 1), flops),
        Work(2 * read + written + 2 * weight, 2 * flops),
    )


def patches(form: Form) -> list[Contest]:
    """Gathering visible patches, and the loss on predicted ones."""
    return [build(form, size, batch) for size in form.sizes for batch in form.batches for build in (_gather, _loss)]


def _gather(form: Form, size: str, batch: int) -> Contest:
    config, tokens, _ = shape_of(form, size)
    visible, patch = tokens - 1, config.patch_size

    def release(images: Tensor, ids: Tensor, **statistics: None) -> Tensor:
        return release_gather(images, ids, patch)

    rows = batch * visible * config.patch_values * form.dtype.itemsize
    image = batch * config.patches * config.patch_values * form.dtype.itemsize
    return op_contest(
        "patches",
        form,
        {"model": model_name(size), "problem": f"gather {visible} of {config.patches}"},
        batch,
        lambda draw, batch: problems.gather_patches(draw, batch, visible, patch, config.grid),
        partial(ck.gather_patches, patch_size=patch),
        forward=Work(2 * rows, 0),
        backward=Work(rows + image, 0),
        others={"release": lambda: Solver(release)},
    )


def _loss(form: Form, size: str, batch: int) -> Contest:
    config, _, predicted = shape_of(form, size)
    patch = config.patch_size

    def pose(draw: Draw, batch: int) -> Problem:
        posed = problems.patch_loss(draw, batch, predicted, patch, config.grid)
        ids = posed.arguments["predicted_ids"]
        assert isinstance(ids, Tensor)
        return posed.having(predicted_ids=ids.sort(dim=1).values)  # as the release has them

    def release(prediction: Tensor, images: Tensor, predicted_ids: Tensor, **statistics: None) -> Tensor:
        return release_loss(prediction, images, predicted_ids, patch)

    rows = batch * predicted * config.patch_values * form.dtype.itemsize
    return op_contest(
        "patches",
        form,
        {"model": model_name(size), "problem": f"loss on {predicted} of {config.patches}"},
        batch,
        pose,
        # One loss for each patch: a sum over everything would hide an error in any of them.
        partial(ck.patch_loss, patch_size=patch, normalize=True, reduction="none"),
        forward=Work(2 * rows, 0),
        backward=Work(rows, 0),
        others={"release": lambda: Solver(release, no_graph=SYNCHRONIZES)},
    )
