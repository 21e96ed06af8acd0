"""The calls whose launches are compiled: every kernel at the shapes of the released models."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crossmae_kernels.primitives.tiles import persistent_refusals
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.testing import Draw, Problem, problems

# What is computed in; "tf32" is float32 that tensor cores multiply.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}


@dataclass(frozen=True)
class Call:
    """A problem, and how it is solved."""

    problem: Problem
    autocast: bool = False
    """Whether arguments are in float32 and autocast says what is computed in."""
    frozen: tuple[str, ...] = ()
    """Arguments that want no gradient."""
    far: tuple[str, ...] = ()
    """Arguments whose rows lie 2^26 elements apart, so that offsets take 64 bits."""

    def run(self, dtype: torch.dtype) -> None:
        """Call the op, and its backward pass if any argument wants a gradient; the values are anything."""
        arguments = self.problem.leaves(torch.float32 if self.autocast else dtype, self.frozen)
        for name in self.far:
            arguments[name] = _far_apart(arguments[name])
        autocast = self.autocast and dtype != torch.float32
        with self.problem.in_form():
            with torch.autocast("cpu", dtype) if autocast else nullcontext():
                out = self.problem.by("triton")(**arguments)
            # A missing bias is None, and a call without gradients has no backward pass.
            outs = [t for t in ([out] if isinstance(out, Tensor) else out) if t is not None and t.requires_grad]
            if outs:
                torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])


def _far_apart(leaf: Tensor) -> Tensor:
    *outer, _ = leaf.stride()
    strides = [*(stride // outer[-1] * 2**26 for stride in outer), 1]
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype).requires_grad_(leaf.requires_grad)


def cross_attention(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Heads of the decoder and of ViT-B's encoder and smaller ones, of ViT-H's encoder, and the widest.

    Keys are the visible patches and the class token at 224 px with patches of 16 and 14, and at 448 px.
    """
    for head_width in (32, 64, 80, 128):
        for keys in (50, 65, 197):
            yield Call(problems.cross_attention_kvpacked(draw, images, 147, keys, 16, head_width))
    yield Call(problems.cross_attention_kvpacked(draw, images, 49, 50, 16, 32, table=196))
    if every_form:
        yield Call(problems.cross_attention_kvpacked(draw, images, 49, 197, 16, 32, table=196))
        for keys in (50, 197):
            dense = problems.cross_attention(draw, images, 147, keys, 16, 32)
            yield Call(dense, far=("query", "key", "value"))
            for frozen in (("query",), ("key", "value"), ("key",), ("value",)):
                yield Call(dense, frozen=frozen)
            yield Call(problems.self_attention_qkvpacked(draw, images, keys, 12, 64))


def feature_mixing(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Every model; with bfloat16 also maps in float32, as autocast has them."""
    for maps, width in ((13, 768), (13, 384), (25, 1024), (33, 1280)):
        problem = problems.mix_feature_maps(draw, (images, 50), maps, 12, width)
        yield Call(problem)
        if dtype == "bf16":
            yield Call(problem, autocast=True)
    if every_form:
        yield Call(problems.mix_feature_maps(draw, (images, 50), 13, 12, 768, normalize=False))


def mlp(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Decoders of ViT-B and ViT-S, ViT-B's encoder, and what tiles do not divide; ours in float32 too."""
    rows, in_16_bits = (images, 49), DTYPES[dtype] != torch.float32
    for hidden in ("recompute", "save"):
        yield Call(problems.in_form(problems.mlp(draw, rows, 512, 2048, hidden), "tiled"), autocast=True)
    odd = problems.mlp(draw, rows, 96, 200)
    yield Call(odd if in_16_bits else problems.in_form(odd, "tiled"), autocast=True)
    if in_16_bits:
        small = problems.mlp(draw, rows, 256, 1024)
        yield Call(small, autocast=True)
        yield Call(small, autocast=True, frozen=tuple(small.differentiable))
    yield Call(problems.in_form(problems.mlp(draw, rows, 512, 2048), "library"), autocast=True)
    yield Call(problems.mlp(draw, rows, 768, 3072), autocast=True)
    if _persistent_serves(dtype):
        for hidden in ("recompute", "save"):
            yield Call(problems.in_form(problems.mlp(draw, rows, 512, 2048, hidden), "persistent"), autocast=True)


def _persistent_serves(dtype: str) -> bool:
    """Whether programs that stay multiply in this dtype on the device that launches are recorded for."""
    return not persistent_refusals(DTYPES[dtype], limits(torch.device("cpu")), 1, ())


def norm_folding(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Master weights in float32: of a block, and of the projections of all decoder blocks of the released models.

    The decoder's width, that of ViT-B's encoder, which is no power of two, and more than a program takes at a time.
    """
    for blocks in (0, 12):
        for width in (512, 768, 1280):
            yield Call(problems.fold_norm(draw, 512, width, blocks, dtype=DTYPES[dtype]), autocast=True)


def patches(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Patches of ViT-S to ViT-L and the largest that are served; ViT-H's, a spectrogram's; float16's are bfloat16's."""
    if dtype == "fp16":
        return
    for op in (problems.gather_patches, problems.patch_loss):
        posed = partial(op, draw, images, 49)
        yield Call(posed(16, (14, 14)))
        yield Call(posed(64, (4, 4), 4))
        if every_form:
            yield Call(posed(14, (16, 16)))
            yield Call(posed((128, 2), (1, 196), 1))
            yield Call(posed(16, (14, 14)), far=("images",))
            # Gathered rows and predictions are in bfloat16, as in training.
            for pixels in (torch.float32, torch.uint8):
                yield Call(posed(16, (14, 14), pixels=pixels), autocast=op is problems.gather_patches)


def projection(draw: Draw, images: int, dtype: str, every_form: bool) -> Iterator[Call]:
    """Tiles of 128, 64 and 32 columns, the last with widths that tiles do not divide, and passes over rows.

    Widths of models are multiples of 16. Rows of others, of 200 elements, promise the compiler nothing.
    """
    rows = images, 49
    for problem, form in (
        (problems.linear_residual(draw, rows, 512, 512, table=196), "tiled"),
        (problems.linear_residual(draw, rows, 768, 192), "tiled"),
        (problems.linear_residual(draw, rows, 208, 96), "tiled"),
        (problems.linear_residual(draw, rows, 200, 200), "tiled"),
        (problems.linear_residual(draw, rows, 768, 768, table=196), "library"),
        (problems.norm_linear(draw, rows, 512, 2048, "gelu"), "tiled"),
    ):
        yield Call(problems.in_form(problem, form), autocast=True)
    yield Call(problems.norm_linear(draw, rows, 768, 2304), autocast=True)
    if _persistent_serves(dtype):
        for problem in (
            problems.linear_residual(draw, rows, 512, 512, table=196),
            problems.linear_residual(draw, rows, 208, 96),
            problems.linear_residual(draw, rows, 208, 48),
        ):
            yield Call(problems.in_form(problem, "persistent"), autocast=True)


# By op: the calls on so many images in a dtype, and whether those are asked for that change the code a little.
CALLS: dict[str, Callable[[Draw, int, str, bool], Iterator[Call]]] = {
    function.__name__: function
    for function in (cross_attention, feature_mixing, mlp, norm_folding, patches, projection)
}
