"""Single operations at the shapes of the models' decoders: the kernels, the reference, it compiled, and others' best.

Beside them stands the release's formulation where it differs. It stacks feature maps on the last axis and norms strided
slices of their mix; it cuts whole images into patches and then drops most of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import crossmae_kernels as ck
from benchmarks.contest import BOTH, FORWARD, Call, Contest, Direction, Form, MissingError, Work, compiled
from crossmae.benchmark.release import SYNCHRONIZES, release_gather, release_loss, release_mixing, release_projections
from crossmae_kernels.check.contenders import Attention, attend, attentions
from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import Draw, Problem, problems
from crossmae_kernels.testing.judge import outputs_of
from crossmae_kernels.testing.problem import named

Pose = Callable[[Draw, int], Problem]
Moved = tuple[float, float]

# Suites whose first shape is compiled in every form: each compiler takes up to a minute.
DECISIVE = ("mixing", "attention", "mlp")


def contests(suite: str, form: Form) -> list[Contest]:
    """What a suite poses for each size of model and each batch."""
    return [contest for size in form.sizes for batch in form.batches for contest in SUITES[suite](form, size, batch)]


def op_contest(
    suite: str,
    form: Form,
    size: str,
    batch: int,
    pose: Pose,
    others: Mapping[str, Callable[[], Call]] | None = None,
    moved: Moved | None = None,
    no_graph: Mapping[str, str] | None = None,
) -> Contest:
    """An operation of ``crossmae_kernels`` as it is posed, against its reference and ``others``.

    ``moved`` are the least bytes forward and backward, unless each argument, result and gradient moves once.
    """
    posed, work = _without_data(form, batch, pose, moved)
    contenders = {"reference": lambda: posed.by("reference"), "fused": lambda: posed.by("triton"), **(others or {})}
    if form.name == "full" or (suite in DECISIVE and (size, batch) == (form.sizes[0], form.batches[0])):
        contenders |= {
            f"{name}, {compiler}": partial(compiled, contenders[name], options)
            for name in ("reference", "release")
            if name in contenders
            for compiler, options in form.compilers.items()
        }
    scale, patch = size.split("_patch")
    model = f"ViT-{'T' if scale == 'tiny' else scale[0].upper()}/{patch}"
    about = {"model": model, "problem": str(posed)}
    return Contest(suite, about, batch, form.dtype, pose, contenders, work, no_graph or {})


def _without_data(form: Form, batch: int, pose: Pose, moved: Moved | None) -> tuple[Problem, dict[Direction, Work]]:
    """The problem, and its least work: FLOPs as PyTorch counts them in the reference."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        posed = pose(Draw(dtype=form.dtype), batch)
        results = outputs_of(posed.by("reference")(**posed.arguments))
    flops = float(counter.get_total_flops())
    arguments = dict(named(posed.arguments))
    forward, backward = moved or (_bytes(arguments) + _bytes(results), _bytes_backward(arguments, results))
    # Each product has two gradients, which are products of the same size.
    return posed, {FORWARD: Work(forward, flops), BOTH: Work(forward + backward, 3 * flops)}


def _bytes(tensors: Mapping[str, Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def _bytes_backward(arguments: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> float:
    """Arguments and upstream gradients are read, gradients written; a residual's is the result's and need not move."""
    read = {name: tensor for name, tensor in arguments.items() if name != "residual"}
    written = {name: tensor for name, tensor in read.items() if tensor.is_floating_point()}
    return _bytes(read) + _bytes(results) + _bytes(written)


def mixing(form: Form, size: str, batch: int) -> list[Contest]:
    """Mixing of feature maps and its norm, without the affine, which the next linear layer takes in."""
    config, tokens, _ = form.decoder_shape(size)
    maps, mixes, width = len(config.feature_maps or ()), config.decoder_depth, config.encoder_width

    def pose(draw: Draw, batch: int) -> Problem:
        return problems.mix_feature_maps(draw, (batch, tokens), maps, mixes, width)

    def release(maps: list[Tensor], weight: Tensor, **affine: None) -> tuple[Tensor, ...]:
        return release_mixing(maps, weight, problems.EPS)

    return [op_contest("mixing", form, size, batch, pose, {"release": lambda: release})]


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

    def call(attention: Attention) -> Call:
        return partial(attend, attention, num_heads=heads)

    others: dict[str, Callable[[], Call]] = {name: partial(call, by) for name, by in attentions().items()}
    others["FlexAttention"] = lambda: call(_flex(form.device))
    return op_contest("attention", form, size, batch, pose, others)


def _flex(device: torch.device) -> Attention:
    if device.type != "cuda":
        raise MissingError("is compiled for GPUs; on a CPU it has no backward pass")
    from torch.nn.attention.flex_attention import flex_attention

    attention = compiled(lambda: flex_attention, {"dynamic": False})

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        attended: Tensor = attention(query, key, value)
        return attended.transpose(1, 2)

    return attend


def mlp(form: Form, size: str, batch: int) -> list[Contest]:
    """The MLP of a decoder block, residual included."""
    config, _, queries = form.decoder_shape(size)
    width = config.decoder_width
    fused = partial(ck.mlp, eps=problems.EPS, impl="triton")

    def pose(draw: Draw, batch: int) -> Problem:
        return problems.mlp(draw, (batch, queries), width, int(width * config.mlp_ratio))

    def in_form(name: str) -> Call:
        def call(**arguments: Any) -> Tensor:
            with form_of("mlp", name):
                return fused(**arguments)

        return call

    others: dict[str, Callable[[], Call]] = {
        f"fused, {name}": partial(in_form, name) for name in ("single", *problems.FORMS)
    }
    others["fused, hidden saved"] = lambda: partial(fused, hidden="save")
    return [op_contest("mlp", form, size, batch, pose, others)]


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
    release = {"release": lambda: partial(release_projections, eps=problems.EPS)}
    return [one(keys_and_values, release), *map(one, (norm_and_query, output_and_residual, norm_and_head))]


def patches(form: Form, size: str, batch: int) -> list[Contest]:
    """Gathering visible patches, and the loss on predicted ones."""
    config, tokens, predicted = form.decoder_shape(size)
    patch, visible, one = config.patch_size, tokens - 1, batch * config.patch_values * form.dtype.itemsize

    def gather(draw: Draw, batch: int) -> Problem:
        return problems.gather_patches(draw, batch, visible, patch, config.grid)

    def gather_by_release(images: Tensor, ids: Tensor, **statistics: None) -> Tensor:
        return release_gather(images, ids, patch)

    def loss(draw: Draw, batch: int) -> Problem:
        # One loss for each patch: a sum over everything would hide an error in any of them.
        posed = problems.patch_loss(draw, batch, predicted, patch, config.grid, reduction="none")
        ids = posed.arguments["predicted_ids"]
        assert isinstance(ids, Tensor)
        return posed.having(predicted_ids=ids.sort(dim=1).values)  # as the release has them

    def loss_by_release(prediction: Tensor, images: Tensor, predicted_ids: Tensor, **statistics: None) -> Tensor:
        return release_loss(prediction, images, predicted_ids, patch)

    # Patches are read and written; their gradients are read, and that of the whole image is written.
    gathered = 2 * visible * one, (visible + config.patches) * one
    # Predicted and target patches are read and, in the same pass, the gradient is written.
    lost = 2 * predicted * one, predicted * one
    contest = partial(op_contest, "patches", form, size, batch)
    return [
        contest(gather, {"release": lambda: gather_by_release}, gathered),
        contest(loss, {"release": lambda: loss_by_release}, lost, {"release": SYNCHRONIZES}),
    ]


SUITES = {"mixing": mixing, "attention": attention, "mlp": mlp, "projection": projection, "patches": patches}
