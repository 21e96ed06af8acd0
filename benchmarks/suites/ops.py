"""Single operations at the shapes of the models' decoders: the kernels, the reference, it compiled, and others' best.

Beside them stands the release's formulation where it differs. It stacks feature maps on the last axis and norms strided
slices of their mix; it cuts whole images into patches and then drops most of them.
"""

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import crossmae_kernels as ck
from benchmarks.contest import BOTH, FORWARD, Contest, Direction, Form, MissingError, Solver, Work, model_name
from crossmae.benchmark.release import SYNCHRONIZES, release_gather, release_loss, release_mixing, release_projections
from crossmae_kernels.check.contenders import Attention, attend, attentions
from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import Draw, Problem, problems
from crossmae_kernels.testing.judge import outputs_of
from crossmae_kernels.testing.problem import named

Pose = Callable[[Draw, int], Problem]
Moved = tuple[float, float]

# Suites whose first shape is compiled in every form.
DECISIVE = ("mixing", "attention", "mlp")


def ceilings(form: Form) -> list[Contest]:
    """What the machine can do at most: copy, and multiply in the form's dtype. Both are large enough to fill it."""
    rows, width = (8, 64) if form.name == "tiny" else (1024, 1024) if form.device.type == "cpu" else (8192, 8192)

    def vectors(draw: Draw, batch: int) -> Problem:
        return Problem("copy", "", {"x": draw.normal(batch, 16 * width)})

    def matrices(draw: Draw, batch: int) -> Problem:
        weight = draw.normal(width, width, scale=width**-0.5)
        return Problem("product", "", {"x": draw.normal(batch, width), "weight": weight})

    def contest(name: str, pose: Pose, call: Callable[..., Tensor], elements: int, flops: float) -> Contest:
        work: dict[Direction, Work] = {FORWARD: Work(elements * form.dtype.itemsize, flops)}
        return Contest(
            "ceilings", {"problem": name}, rows, form.dtype, pose, {"reference": partial(Solver, call)}, work
        )

    return [
        contest("copy", vectors, torch.clone, 32 * rows * width, 0),
        contest("product", matrices, lambda x, weight: x @ weight, (2 * rows + width) * width, 2.0 * rows * width**2),
    ]


def op_contest(
    suite: str,
    form: Form,
    size: str,
    batch: int,
    pose: Pose,
    others: Mapping[str, Callable[[], Solver]] | None = None,
    moved: Moved | None = None,
) -> Contest:
    """An operation of ``crossmae_kernels`` as it is posed, against its reference and ``others``.

    ``moved`` are the least bytes forward and backward, unless each argument, result and gradient moves once.
    """
    posed, work = _without_data(form, batch, pose, moved)
    contenders = {"reference": partial(Solver, posed.by("reference")), "fused": partial(Solver, posed.by("triton"))}
    return Contest(
        suite=suite,
        about={"model": model_name(size), "problem": str(posed)},
        batch=batch,
        dtype=form.dtype,
        pose=pose,
        contenders=contenders | dict(others or {}),
        work=work,
        decisive=suite in DECISIVE and (size, batch) == (form.sizes[0], form.batches[0]),
    )


def _without_data(form: Form, batch: int, pose: Pose, moved: Moved | None) -> tuple[Problem, dict[Direction, Work]]:
    """The problem, and its least work: FLOPs as PyTorch counts them in the reference."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        posed = pose(Draw(dtype=form.dtype), batch)
        results = outputs_of(posed.by("reference")(**posed.arguments))
    flops = float(counter.get_total_flops())
    arguments = dict(named(posed.arguments))
    forward, backward = moved or (_bytes(arguments) + _bytes(results), _bytes_backward(posed, arguments, results))
    # Each product has two gradients, which are products of the same size.
    return posed, {FORWARD: Work(forward, flops), BOTH: Work(forward + backward, 3 * flops)}


def _bytes(tensors: Mapping[str, Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def _bytes_backward(posed: Problem, arguments: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> float:
    """Arguments and upstream gradients are read, gradients written; a residual's is the result's and need not move."""
    read = {name: tensor for name, tensor in arguments.items() if name != "residual"}
    written = {name: tensor for name, tensor in read.items() if tensor.is_floating_point()}
    return _bytes(read) + _bytes(results) + _bytes(written)


def each_shape(suite: Callable[[Form, str, int], list[Contest]]) -> Callable[[Form], list[Contest]]:
    """A suite of what there is for each size of model and each batch."""

    @functools.wraps(suite)
    def contests(form: Form) -> list[Contest]:
        return [contest for size in form.sizes for batch in form.batches for contest in suite(form, size, batch)]

    return contests


@each_shape
def mixing(form: Form, size: str, batch: int) -> list[Contest]:
    """Mixing of feature maps and its norm, without the affine, which the next linear layer takes in."""
    config, tokens, _ = form.decoder_shape(size)
    maps, mixes, width = len(config.feature_maps or ()), config.decoder_depth, config.encoder_width

    def pose(draw: Draw, batch: int) -> Problem:
        return problems.mix_feature_maps(draw, (batch, tokens), maps, mixes, width)

    def release(maps: list[Tensor], weight: Tensor, **affine: None) -> tuple[Tensor, ...]:
        return release_mixing(maps, weight, problems.EPS)

    return [op_contest("mixing", form, size, batch, pose, {"release": partial(Solver, release)})]


@each_shape
def attention(form: Form, size: str, batch: int) -> list[Contest]:
    """Decoder blocks, the first with a table of queries; in the full form self-attention and larger images too."""
    config, keys, queries = form.decoder_shape(size)
    heads = config.decoder_heads, config.decoder_width // config.decoder_heads
    shapes = [(queries, keys, *heads, table) for table in (0, config.patches)]
    if form.name == "full":
        larger, more_keys, more_queries = form.decoder_shape(size, 448)
        encoder_heads = config.encoder_heads, config.encoder_width // config.encoder_heads
        mae = config.patches + 1
        shapes.append((more_queries, more_keys, *heads, larger.patches))
        shapes += [(keys, keys, *encoder_heads, 0), (mae, mae, *heads, 0)]
    return [_attention(form, size, batch, *shape) for shape in shapes]


def _attention(
    form: Form, size: str, batch: int, queries: int, keys: int, heads: int, head_width: int, table: int
) -> Contest:
    def pose(draw: Draw, batch: int) -> Problem:
        posed = problems.cross_attention(draw, batch, queries, keys, heads, head_width, table)
        # Keys and values lie side by side, as the joint projection leaves them.
        key, value = draw.normal(batch, keys, 2 * heads * head_width).chunk(2, dim=-1)
        return posed.having(key=key, value=value)

    def solver(attention: Attention) -> Solver:
        return Solver(partial(attend, attention, num_heads=heads))

    others: dict[str, Callable[[], Solver]] = {n: partial(solver, attention) for n, attention in attentions().items()}
    others["FlexAttention"] = lambda: solver(_flex(form.device))
    return op_contest("attention", form, size, batch, pose, others)


def _flex(device: torch.device) -> Attention:
    if device.type != "cuda":
        raise MissingError("is compiled for GPUs; on a CPU it has no backward pass")
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    attention: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        return attention(query, key, value).transpose(1, 2)

    return attend


@each_shape
def mlp(form: Form, size: str, batch: int) -> list[Contest]:
    """The MLP of a decoder block, residual included."""
    config, _, queries = form.decoder_shape(size)
    width = config.decoder_width
    fused = partial(ck.mlp, eps=problems.EPS, impl="triton")

    def pose(draw: Draw, batch: int) -> Problem:
        return problems.mlp(draw, (batch, queries), width, int(width * config.mlp_ratio))

    def in_form(name: str, **arguments: Any) -> Tensor:
        with form_of("mlp", name):
            return fused(**arguments)

    others = {f"fused, {name}": partial(Solver, partial(in_form, name)) for name in ("single", *problems.FORMS)}
    others["fused, hidden saved"] = partial(Solver, partial(fused, hidden="save"))
    return [op_contest("mlp", form, size, batch, pose, others)]


@each_shape
def projection(form: Form, size: str, batch: int) -> list[Contest]:
    """The linear layers around attention: keys and values of all blocks, norm and query, output and residual, head."""
    config, tokens, queries = form.decoder_shape(size)
    width, inner = config.decoder_width, config.encoder_width
    maps, blocks = len(config.feature_maps or ()), config.decoder_depth

    def keys_and_values(draw: Draw, batch: int) -> Problem:
        return problems.project_feature_maps(draw, (batch, tokens), maps, blocks, inner, 2 * width)

    def norm_and_query(draw: Draw, batch: int) -> Problem:
        return problems.norm_linear(draw, (batch, queries), width, width)

    def output_and_residual(draw: Draw, batch: int) -> Problem:
        return problems.linear_residual(draw, (batch, queries), width, width)

    def norm_and_head(draw: Draw, batch: int) -> Problem:
        return problems.norm_linear(draw, (batch, queries), width, config.patch_values)

    one = partial(op_contest, "projection", form, size, batch)
    release = partial(Solver, partial(release_projections, eps=problems.EPS))
    return [one(keys_and_values, {"release": release}), *map(one, (norm_and_query, output_and_residual, norm_and_head))]


@each_shape
def patches(form: Form, size: str, batch: int) -> list[Contest]:
    """Gathering visible patches, and the loss on predicted ones."""
    return [_gather(form, size, batch), _loss(form, size, batch)]


def _gather(form: Form, size: str, batch: int) -> Contest:
    config, tokens, _ = form.decoder_shape(size)
    patch, one = config.patch_size, batch * config.patch_values * form.dtype.itemsize

    def pose(draw: Draw, batch: int) -> Problem:
        return problems.gather_patches(draw, batch, tokens - 1, patch, config.grid)

    def release(images: Tensor, ids: Tensor, **statistics: None) -> Tensor:
        return release_gather(images, ids, patch)

    # Patches are read and written; their gradients are read, and that of the whole image is written.
    moved = 2 * (tokens - 1) * one, (tokens - 1 + config.patches) * one
    return op_contest("patches", form, size, batch, pose, {"release": partial(Solver, release)}, moved)


def _loss(form: Form, size: str, batch: int) -> Contest:
    config, _, predicted = form.decoder_shape(size)
    patch, one = config.patch_size, batch * config.patch_values * form.dtype.itemsize

    def pose(draw: Draw, batch: int) -> Problem:
        # One loss for each patch: a sum over everything would hide an error in any of them.
        posed = problems.patch_loss(draw, batch, predicted, patch, config.grid, reduction="none")
        ids = posed.arguments["predicted_ids"]
        assert isinstance(ids, Tensor)
        return posed.having(predicted_ids=ids.sort(dim=1).values)  # as the release has them

    def release(prediction: Tensor, images: Tensor, predicted_ids: Tensor, **statistics: None) -> Tensor:
        return release_loss(prediction, images, predicted_ids, patch)

    # Predicted and target patches are read and, in the same pass, the gradient is written.
    moved = 2 * predicted * one, predicted * one
    others = {"release": partial(Solver, release, no_graph=SYNCHRONIZES)}
    return op_contest("patches", form, size, batch, pose, others, moved)
