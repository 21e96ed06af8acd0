"""What is compiled: every launch of every op, forward and backward, at the shapes of the released models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from crossmae_kernels.audit.case import DEVICES, Case
from crossmae_kernels.audit.recording import record
from crossmae_kernels.testing import problems
from crossmae_kernels.testing.problem import Draw, Problem, named

# What ops compute in; "tf32" is float32 that tensor cores multiply.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}

# Rows are no constants of a kernel, so a few images stand for all batches.
IMAGES = 2


@dataclass(frozen=True)
class Call:
    """A problem, and how it is solved."""

    problem: Problem
    autocast: bool = False
    """Whether arguments are in float32 and autocast says what is computed in."""
    frozen: frozenset[str] = frozenset()
    """Arguments that want no gradient."""
    far: frozenset[str] = frozenset()
    """Arguments whose elements lie further apart than 32 bits say."""


def attention_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """Decoder and encoder of ViT-B and smaller, ViT-H's encoder, and the widest heads.

    Keys are the visible patches and the class token at 224 px with patches of 16 and 14, and at 448 px.
    """
    for head_width in (32, 64, 80, 128):
        for keys in (50, 65, 197):
            yield Call(problems.cross_attention_kvpacked(draw, IMAGES, 147, keys, 16, head_width))
    yield Call(problems.cross_attention_kvpacked(draw, IMAGES, 49, 50, 16, 32, table=196))
    if every_form:
        yield Call(problems.cross_attention_kvpacked(draw, IMAGES, 49, 197, 16, 32, table=196))
        for keys in (50, 197):
            dense = problems.cross_attention(draw, IMAGES, 147, keys, 16, 32)
            for frozen in (["query"], ["key", "value"], ["key"], ["value"]):
                yield Call(dense, frozen=frozenset(frozen))
            yield Call(dense, far=frozenset(["query", "key", "value"]))
            yield Call(problems.self_attention_qkvpacked(draw, IMAGES, keys, 16, 32))


def mixing_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """Every model's feature maps; with bfloat16 also in float32, as autocast has them."""
    for maps, width in ((13, 384), (13, 768), (25, 1024), (33, 1280)):
        problem = problems.mix_feature_maps(draw, (IMAGES, 50), maps, 12, width)
        yield Call(problem)
        if dtype == "bf16":
            yield Call(problem, autocast=True)


def folding_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """Decoder of ViT-B, its encoder, which is no power of two, and more than a program takes at a time.

    Of master weights in float32: a block's own, and the projections of as many decoder blocks as the models have.
    """
    for blocks in (0, 12):
        for width in (512, 768, 1280):
            yield Call(problems.fold_norm(draw, 512, width, blocks, dtype=DTYPES[dtype]), autocast=True)


def mlp_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """ViT-B's decoder and ViT-S's, and what tiles do not divide; kernels of float32 run where they are asked for."""
    medium = problems.mlp(draw, (IMAGES, 49), 256, 1024)
    odd = problems.mlp(draw, (IMAGES, 49), 96, 200)
    if DTYPES[dtype] == torch.float32:
        odd = _in_form(odd, "tiled")
    else:
        yield Call(medium, autocast=True)
        yield Call(medium, autocast=True, frozen=frozenset(medium.differentiable))
    yield Call(odd, autocast=True)
    for hidden in ("recompute", "save"):
        yield Call(_in_form(problems.mlp(draw, (IMAGES, 49), 512, 2048, hidden), "tiled"), autocast=True)
    yield Call(_in_form(problems.mlp(draw, (IMAGES, 50), 768, 3072), "vendor"), autocast=True)


def projection_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """Tiles of 128, 64 and 32 columns, the last with widths that tiles do not divide; and passes over rows."""
    rows = IMAGES, 49
    linear = problems.linear_residual
    yield Call(_in_form(problems.norm_linear(draw, rows, 512, 2048, "gelu"), "tiled"), autocast=True)
    yield Call(_in_form(linear(draw, rows, 512, 512, table=196), "tiled"), autocast=True)
    yield Call(_in_form(linear(draw, rows, 768, 192), "tiled"), autocast=True)
    yield Call(_in_form(linear(draw, rows, 208, 96), "tiled"), autocast=True)
    yield Call(_in_form(linear(draw, rows, 768, 768, table=196), "vendor"), autocast=True)


def patch_calls(draw: Draw, dtype: str, every_form: bool) -> Iterator[Call]:
    """ViT-S to ViT-L, ViT-H, other pixels and the largest patch; in float16 kernels are what they are in bfloat16."""
    if dtype == "fp16":
        return
    for op in (problems.gather_patches, problems.patch_loss):
        posed = partial(op, draw, IMAGES, 49)
        yield Call(posed(16, (14, 14)))
        yield Call(posed(64, (4, 4), 4))
        if every_form:
            yield Call(posed(14, (16, 16)))
            yield Call(posed(16, (14, 14)), far=frozenset(["images"]))
            # Rows and predictions are in bfloat16, as in training.
            for pixels in (torch.float32, torch.uint8):
                yield Call(posed(16, (14, 14), pixels=pixels), autocast=op is problems.gather_patches)


def _in_form(problem: Problem, form: str) -> Problem:
    return replace(problem, forms=dict.fromkeys((problem.op, f"{problem.op}_backward"), form))


# By folder.
CALLS: dict[str, Callable[[Draw, str, bool], Iterator[Call]]] = {
    "cross_attention": attention_calls,
    "feature_mixing": mixing_calls,
    "mlp": mlp_calls,
    "norm_folding": folding_calls,
    "patches": patch_calls,
    "projection": projection_calls,
}


def cases(
    ops: Sequence[str] = tuple(CALLS),
    architectures: Sequence[int] = tuple(DEVICES),
    dtypes: Sequence[str] = tuple(DTYPES),
) -> list[Case]:
    """Every launch of the given ops, architectures and dtypes, once."""
    return [case for arch in architectures for dtype in dtypes for case in _recorded(ops, arch, dtype)]


def _recorded(ops: Sequence[str], arch: int, dtype: str) -> list[Case]:
    """Those of an architecture and a dtype; of TF32 those that multiply, the others' code is float32's."""
    found: list[Case] = []
    with record(DEVICES[arch]) as launches, _multiplied_in(dtype):
        draw = Draw()
        for op in ops:
            # Forms that change the code a little, where most of the training is done.
            for call in CALLS[op](draw, dtype, (arch, dtype) == (90, "bf16")):
                launches.clear()
                solve(call, DTYPES[dtype])
                for launch in launches:
                    known = any(launch == case.launch for case in found)
                    if not known and (dtype != "tf32" or "PRECISION" in launch.named_constants):
                        found.append(Case(op, call.problem.label, arch, dtype, launch))
    return found


def solve(call: Call, dtype: torch.dtype) -> None:
    """Call the op, and its backward pass if any argument wants a gradient."""
    problem = call.problem
    arguments = problem.leaves(torch.float32 if call.autocast else dtype, call.frozen)
    for name in call.far:
        arguments[name] = _far_apart(arguments[name])
    context: AbstractContextManager[object] = nullcontext()
    if call.autocast and dtype != torch.float32 :
        context = torch.autocast("cpu", dtype)
    with problem.in_form():
        with context:
            out = problem.by("triton")(**arguments)
        outs = [out] if isinstance(out, Tensor) else list(out)
        if any(out.requires_grad for out in outs):
            torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])


def _far_apart(leaf: Tensor) -> Tensor:
    """The same with rows 2^26 elements apart."""
    *outer, _ = leaf.stride()
    strides = [*(stride // outer[-1] * 2**26 for stride in outer), 1]
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype).requires_grad_(leaf.requires_grad)


@contextmanager
def _multiplied_in(dtype: str) -> Iterator[None]:
    """What PyTorch is set to multiply float32 in, until the block ends."""
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
